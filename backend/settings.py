"""Every environment variable, validated in one place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableSettingsError

from backend.addresses import AllowedHosts
from backend.errors import RequestError, SettingsError

# The longest path that a Unix socket can have is 107 bytes on Linux and 103 on macOS.
LONGEST_SOCKET_PATH = 100

# Where Docker and Podman put the files of a container's secrets.
SECRETS_DIR = Path("/run/secrets")


class QueryStrategy(str, Enum):
    """Which tasks a human is asked about first."""

    AUTO = "auto"
    MARGIN = "margin"
    ENTROPY = "entropy"
    LEAST = "least"
    RANDOM = "random"
    BALD = "bald"
    CORESET = "coreset"
    TYPICLUST = "typiclust"
    BADGE = "badge"
    DROPQUERY = "dropquery"


class Score(str, Enum):
    """What a prediction's `score` in Label Studio means."""

    CONFIDENCE = "confidence"
    UNCERTAINTY = "uncertainty"


class LearningSettings(BaseModel):
    """The settings that a project can override in Label Studio's extra params."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query_strategy: QueryStrategy
    score: Score
    retrain_delay: Annotated[float, Field(ge=0, le=3600)]
    min_annotations: Annotated[int, Field(ge=1, le=1_000_000)]
    prompts: dict[str, Annotated[list[str], Field(min_length=1, max_length=1000)]] = {}

    def overridden_by(self, extra_params: dict[str, Any]) -> LearningSettings:
        """Return these settings with a project's extra params on top.

        Raises RequestError where a key is unknown or a value is wrong.
        """
        return LearningSettings.model_validate(self.model_dump() | parse_extra_params(extra_params))


class _ExtraParams(BaseModel):
    """The JSON that a user types into Label Studio's "extra params"."""

    model_config = ConfigDict(extra="forbid")

    query_strategy: QueryStrategy = QueryStrategy.AUTO
    score: Score = Score.CONFIDENCE
    retrain_delay: Annotated[float, Field(ge=0, le=3600)] = 0
    min_annotations: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    prompts: dict[str, Annotated[list[str], Field(min_length=1, max_length=1000)]] = {}


def parse_extra_params(extra_params: object) -> dict[str, Any]:
    """Return a project's extra params, given as an object or as JSON text, once they are valid.

    Raises RequestError where a key is unknown or a value is wrong.
    """
    if extra_params in (None, "", {}):
        return {}
    try:
        if isinstance(extra_params, str):
            parsed = _ExtraParams.model_validate_json(extra_params)
        else:
            parsed = _ExtraParams.model_validate(extra_params)
    except ValidationError as error:
        known = ", ".join(_ExtraParams.model_fields)
        raise RequestError(f"extra params: {_first_problem(error)}. Known keys: {known}") from None
    return parsed.model_dump(mode="json", exclude_unset=True)


class _SecretFiles(SecretsSettingsSource):
    """Settings in files; an empty file is an unset variable, as an empty variable is."""

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if value}


class Settings(BaseSettings):
    """What environment and secret files say; `read()` turns their errors into sentences."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    label_studio_url: str | None = Field(
        None,
        description="Address of Label Studio as seen from here, such as `http://localhost:8080`",
    )
    label_studio_api_key: SecretStr | None = Field(
        None,
        description="Label Studio token of a user who may change the project: "
        "a legacy token or a personal access token",
    )
    backend_url: str | None = Field(
        None,
        description="Address of this backend as seen from Label Studio; "
        "default of `connect --backend-url`",
    )
    public_url: str | None = Field(
        None,
        description="Address of this backend as seen from people's browsers, for links to its "
        "page; unset: `BACKEND_URL`, or what `connect --backend-url` says",
    )
    label_studio_public_url: str | None = Field(
        None,
        description="Address of Label Studio as seen from people's browsers, for links and "
        "pictures on the page; unset: `LABEL_STUDIO_URL`",
    )
    clip_model: str = Field(
        "ViT-B-32-256", description="open_clip architecture; `tiny` is the small one shipped here"
    )
    clip_pretrained: str | None = Field(
        None,
        description="open_clip weights tag or a path to weights; `datacomp_s34b_b86k` for the "
        "default model, the shipped weights for `tiny`",
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`")
    precision: str = Field(
        "auto",
        description="`auto`, `float32`, `bfloat16`, `float16`; "
        "auto is bfloat16 where the hardware computes in it",
    )
    redis_url: str | None = Field(
        None,
        description="Redis of the job queue; unset: the one that `up` starts on a socket in "
        "`DATA_DIR`",
    )
    database_url: str | None = Field(
        None,
        description="SQLAlchemy URL such as `postgresql+psycopg://user:password@host/name`; "
        "unset: SQLite in `DATA_DIR`",
    )
    data_dir: Path = Field(
        Path("data"), description="Folder of the SQLite file and the embedded Redis's socket"
    )
    secrets_dir: Path = Field(
        SECRETS_DIR,
        description="Folder of files that each hold the value of one of these variables and have "
        "its name in lower case, such as `basic_auth_pass`; the environment comes first",
    )
    basic_auth_user: str | None = Field(
        None, description="With `BASIC_AUTH_PASS`: asked of every request but `/` and `/health`"
    )
    basic_auth_pass: SecretStr | None = Field(None, description="See `BASIC_AUTH_USER`")
    webhook_secret: SecretStr | None = Field(
        None,
        description="Secret that webhooks must carry; unset: `connect` makes one for each project",
    )
    query_strategy: QueryStrategy = Field(
        QueryStrategy.AUTO,
        description="`auto`, `margin`, `entropy`, `least`, `random`, `bald`, `coreset`, "
        "`typiclust`, `badge` or `dropquery`",
    )
    score: Score = Field(
        Score.CONFIDENCE,
        description="What a prediction's score is: `confidence` (Label Studio's queue serves the "
        "lowest first) or `uncertainty`",
    )
    retrain_delay: float = Field(
        2.0,
        ge=0,
        le=3600,
        description="Seconds from the last annotation to a training; never more than five times "
        "that from the first",
    )
    min_annotations: int = Field(
        1, ge=1, le=1_000_000, description="Labels of a control from which on its head is trained"
    )
    reconcile_every: float = Field(
        60.0, ge=1, le=86_400, description="Seconds between two comparisons with Label Studio"
    )
    keep_unused_days: int = Field(
        30,
        ge=1,
        le=36_500,
        description="Days that embeddings are kept of pictures that no task of a connected project "
        "refers to",
    )
    host: str = Field("0.0.0.0", description="Address that the API listens on")  # noqa: S104
    port: int = Field(9090, ge=1, le=65_535, description="Port that the API listens on")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port on `HOST` where a worker serves its Prometheus metrics, without a "
        "password; unset: it does not. The API's are on `PORT`",
    )
    threads: int = Field(16, ge=2, le=512, description="Threads that answer requests")
    predict_threads: int | None = Field(
        None,
        ge=1,
        le=511,
        description="Threads of `THREADS` that may be at `/predict`, at work or waiting for a "
        "core, so that the others are there for `/health` and `/webhook`; unset: a quarter of them",
    )
    proxies: int = Field(
        0,
        ge=0,
        le=10,
        description="Reverse proxies before the API whose `X-Forwarded-For` tells the client's "
        "address",
    )
    log_level: str = Field("INFO", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`")
    log_format: str = Field(
        "text", description="`text` (lines of `key=value`) or `json` (an object a line)"
    )
    sentry_dsn: SecretStr | None = Field(
        None,
        description="Sends errors to Sentry, without requests, variables and secrets; needs the "
        "extra `sentry`",
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        None,
        description="Sends a span of each request and job to an OpenTelemetry collector over "
        "HTTP; needs the extra `otel`, which takes all the other `OTEL_` variables too",
    )
    image_hosts: str = Field(
        "public",
        description="Where pictures may come from besides Label Studio: a comma-separated list of "
        "host names, `*.example.com`, addresses, networks such as `10.0.0.0/8`, each with a port "
        "or without, and `public` for every public address",
    )
    image_max_bytes: int = Field(50_000_000, ge=1_000, description="Largest picture file, in bytes")
    image_max_pixels: int = Field(100_000_000, ge=1_000, description="Largest picture, in pixels")
    image_timeout: float = Field(
        30.0, gt=0, le=600, description="Seconds that one picture may take to fetch"
    )
    image_connections: int = Field(
        16, ge=1, le=256, description="Pictures that are fetched at the same time"
    )

    @field_validator("label_studio_url", "backend_url", "public_url", "label_studio_public_url")
    @classmethod
    def _is_web_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # brackets that do not match, or a port that is no number
            valid = False
        if not valid:
            raise ValueError("must be an address such as http://localhost:8080")
        if parts.username or parts.password:
            raise ValueError("must not contain credentials; use LABEL_STUDIO_API_KEY")
        return value.rstrip("/")

    @field_validator("backend_url")
    @classmethod
    def _gets_webhooks(cls, value: str | None) -> str | None:
        # Django's URLValidator: Label Studio adds such a backend, and no webhook, without a word.
        host = (urlsplit(value).hostname if value is not None else None) or "localhost"
        if host != "localhost" and "." not in host and ":" not in host:
            raise ValueError(
                f"Label Studio sends no webhook to a host name without a dot, such as {host}: "
                "give the backend an alias such as clip-backend.internal in Label Studio's network "
                "(in Kubernetes it has SERVICE.NAMESPACE.svc)"
            )
        return value

    @field_validator("public_url")
    @classmethod
    def _has_no_path(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).path:
            raise ValueError("must have no path: the page needs a host or a port of its own")
        return value

    @field_validator("image_hosts")
    @classmethod
    def _is_list_of_hosts(cls, value: str) -> str:
        AllowedHosts.parse(value)
        return value

    @field_validator("precision")
    @classmethod
    def _is_precision(cls, value: str) -> str:
        if value not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError("must be auto, float32, bfloat16 or float16")
        return value

    @field_validator("log_level")
    @classmethod
    def _is_log_level(cls, value: str) -> str:
        if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return value.upper()

    @field_validator("log_format")
    @classmethod
    def _is_log_format(cls, value: str) -> str:
        if value not in ("text", "json"):
            raise ValueError("must be text or json")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - given by pydantic
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from, the first wins."""
        folder = _folder_of_secrets()
        if folder is None:
            return init_settings, env_settings
        return init_settings, env_settings, _SecretFiles(settings_cls, folder)

    @classmethod
    def read(cls, **overrides: Any) -> Settings:
        """Read environment and secret files; `overrides` come from a command line.

        Raises SettingsError that names the first wrong variable.
        """
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            raise SettingsError(_first_problem(error, upper=True)) from None
        except UnreadableSettingsError as error:
            raise SettingsError(f"SECRETS_DIR: {error} ({error.__cause__})") from None
        if (settings.basic_auth_user is None) != (settings.basic_auth_pass is None):
            raise SettingsError("Set both BASIC_AUTH_USER and BASIC_AUTH_PASS, or neither")
        if settings.predictions_at_once >= settings.threads:
            raise SettingsError("PREDICT_THREADS: must be less than THREADS")
        return settings

    @property
    def learning(self) -> LearningSettings:
        """The learning settings of a project without extra params."""
        return LearningSettings(
            query_strategy=self.query_strategy,
            score=self.score,
            retrain_delay=self.retrain_delay,
            min_annotations=self.min_annotations,
        )

    @property
    def predictions_at_once(self) -> int:
        """How many requests for predictions may be answered at the same time."""
        return max(1, self.threads // 4) if self.predict_threads is None else self.predict_threads

    @property
    def requires_auth(self) -> bool:
        """Whether webhooks must prove where they come from."""
        return self.basic_auth_user is not None or self.webhook_secret is not None

    @property
    def keep_unused(self) -> float:
        """How many seconds pictures are kept that no task refers to."""
        return self.keep_unused_days * 86_400.0

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        if self.database_url is not None:
            return self.database_url
        return f"sqlite:///{self.data_dir.absolute() / 'clip-backend.sqlite3'}"

    @property
    def redis_socket(self) -> Path:
        """Socket of the embedded Redis."""
        socket = self.data_dir.absolute() / "redis.sock"
        if len(os.fsencode(socket)) <= LONGEST_SOCKET_PATH:
            return socket
        digest = sha256(os.fsencode(socket)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"clip-backend-{digest}" / "redis.sock"

    @property
    def redis(self) -> str:
        """URL of the job queue's Redis."""
        return self.redis_url if self.redis_url is not None else f"unix://{self.redis_socket}"

    @property
    def secrets(self) -> list[str]:
        """Every value that nobody must read in a log or a report."""
        named = (
            self.label_studio_api_key,
            self.basic_auth_pass,
            self.webhook_secret,
            self.sentry_dsn,
        )
        addresses = (self.database_url, self.redis_url)
        return [
            *(secret.get_secret_value() for secret in named if secret is not None),
            *(secret for url in addresses if url for secret in _passwords(url)),
        ]

    def label_studio(self) -> tuple[str, str]:
        """Return Label Studio's address and token; raises SettingsError if one is unset."""
        if self.label_studio_url is None:
            raise SettingsError(
                "LABEL_STUDIO_URL is not set: the address of Label Studio, "
                "such as http://localhost:8080"
            )
        if self.label_studio_api_key is None:
            raise SettingsError(
                "LABEL_STUDIO_API_KEY is not set: copy a token from Label Studio, "
                "Account & Settings > Access Token"
            )
        return self.label_studio_url, self.label_studio_api_key.get_secret_value()


def _folder_of_secrets() -> Path | None:
    named = os.environ.get("SECRETS_DIR")
    folder = Path(named) if named else SECRETS_DIR
    if folder.is_dir():
        return folder
    if named:
        raise SettingsError(f"SECRETS_DIR: {folder} is not a folder")
    return None


def _passwords(url: str) -> Iterator[str]:
    # As they stand there, quoted or not: a parser would stumble over what another takes.
    userinfo = url.partition("//")[2].rpartition("@")[0]
    if password := userinfo.partition(":")[2]:
        yield password
    for option in url.partition("?")[2].split("&"):
        key, _, value = option.partition("=")
        if "password" in key.lower() and value:
            yield value


def _first_problem(error: ValidationError, *, upper: bool = False) -> str:
    # The rejected value stays out of the message: it may be a secret.
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "is not known"
    return f"{name.upper() if upper else name}: {message}" if name else message
