from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backend.errors import RequestError, SettingsError
from backend.settings import LONGEST_SOCKET_PATH, LearningSettings, Settings, parse_extra_params

SECRET = "hunter2-very-secret"


def the_error(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        Settings.read()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LABEL_STUDIO_URL", "localhost:8080"),
        ("LABEL_STUDIO_URL", "ftp://localhost"),
        ("LABEL_STUDIO_URL", "http://"),
        ("LABEL_STUDIO_URL", "http://localhost:port"),
        ("LABEL_STUDIO_URL", "http://[::1"),
        ("BACKEND_URL", "//backend:9090"),
        ("BACKEND_URL", "http://backend:9090"),
        ("PUBLIC_URL", "clip.example.com"),
        ("PUBLIC_URL", "https://example.com/clip"),
        ("LABEL_STUDIO_PUBLIC_URL", "labels.example.com"),
        ("PRECISION", "int4"),
        ("LOG_LEVEL", "chatty"),
        ("LOG_FORMAT", "xml"),
        ("METRICS_PORT", "0"),
        ("QUERY_STRATEGY", "astrology"),
        ("SCORE", "loss"),
        ("RETRAIN_DELAY", "-1"),
        ("RETRAIN_DELAY", "soon"),
        ("RETRAIN_DELAY", "nan"),
        ("RETRAIN_DELAY", "inf"),
        ("MIN_ANNOTATIONS", "0"),
        ("MIN_ANNOTATIONS", "1.5"),
        ("RECONCILE_EVERY", "0"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("THREADS", "1"),
        ("IMAGE_HOSTS", "http://minio"),
        ("IMAGE_HOSTS", "public,"),
        ("IMAGE_HOSTS", "10.0.0.5/8"),
        ("IMAGE_MAX_BYTES", "0"),
        ("IMAGE_MAX_PIXELS", "many"),
        ("IMAGE_TIMEOUT", "0"),
        ("IMAGE_CONNECTIONS", "0"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    error = the_error(monkeypatch, **{name: value})

    assert error.startswith(f"{name}: ")
    assert "\n" not in error


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "backend.internal", "clip-backend.tools.svc"]
)
def test_label_studio_sends_webhooks_to_localhost_addresses_and_names_with_a_dot(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("BACKEND_URL", f"http://{host}:9090")

    assert Settings.read().backend_url == f"http://{host}:9090"


def test_browsers_may_know_a_host_without_a_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBLIC_URL", "https://clip/")

    assert Settings.read().public_url == "https://clip"


def test_credentials_in_an_address_are_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = the_error(monkeypatch, LABEL_STUDIO_URL=f"http://me:{SECRET}@localhost")

    assert error.startswith("LABEL_STUDIO_URL: ")
    assert SECRET not in error


@pytest.mark.parametrize("given", ["BASIC_AUTH_USER", "BASIC_AUTH_PASS"])
def test_half_of_basic_auth_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    error = the_error(monkeypatch, **{given: SECRET})

    assert "BASIC_AUTH_USER" in error
    assert "BASIC_AUTH_PASS" in error
    assert SECRET not in error


def test_the_rejected_value_stays_out_of_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECRET not in the_error(monkeypatch, PORT=SECRET)


def test_secrets_do_not_show_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LABEL_STUDIO_API_KEY", "BASIC_AUTH_PASS", "WEBHOOK_SECRET"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("BASIC_AUTH_USER", "me")

    settings = Settings.read()

    assert SECRET not in repr(settings) + str(settings)
    assert SECRET not in settings.model_dump_json()


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "LABEL_STUDIO_URL"),
        ({"LABEL_STUDIO_URL": "http://localhost:8080"}, "LABEL_STUDIO_API_KEY"),
    ],
)
def test_a_missing_label_studio_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], missing: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings.read()

    with pytest.raises(SettingsError, match=f"^{missing} is not set"):
        settings.label_studio()


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")

    assert Settings.read() == Settings()
    assert Settings.read().port == 9090


# Secret files


@pytest.fixture
def secret_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    return tmp_path


def test_every_setting_can_be_a_file(secret_files: Path) -> None:
    values = {
        "label_studio_api_key": SECRET,
        "webhook_secret": SECRET,
        "basic_auth_user": "me",
        "basic_auth_pass": SECRET,
        "database_url": f"postgresql+psycopg://me:{SECRET}@db/clip",
        "redis_url": f"rediss://:{SECRET}@queue:6379/0",
        "port": "9191",
    }
    for name, value in values.items():
        (secret_files / name).write_text(f"{value}\n")

    settings = Settings.read()

    assert settings == Settings(secrets_dir=secret_files, **values)  # type: ignore[arg-type]
    assert settings.database == values["database_url"]
    assert settings.redis == values["redis_url"]
    assert SECRET not in repr(settings.label_studio_api_key)


def test_the_environment_wins_over_a_file_and_an_empty_variable_does_not(
    secret_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("database_url", "redis_url"):
        (secret_files / name).write_text("of-the-file")
    monkeypatch.setenv("DATABASE_URL", "of-the-environment")
    monkeypatch.setenv("REDIS_URL", "")

    assert Settings.read().database == "of-the-environment"
    assert Settings.read().redis == "of-the-file"


def test_an_empty_file_is_an_unset_variable(secret_files: Path) -> None:
    for name in ("basic_auth_user", "basic_auth_pass", "redis_url"):
        (secret_files / name).write_text("\n")

    settings = Settings.read()

    assert not settings.requires_auth
    assert settings.redis_url is None


def test_a_wrong_value_in_a_file_names_the_variable_and_stays_secret(secret_files: Path) -> None:
    (secret_files / "port").write_text(SECRET)

    with pytest.raises(SettingsError, match=r"^PORT: ") as caught:
        Settings.read()
    assert SECRET not in str(caught.value)


def test_a_folder_of_secrets_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert the_error(monkeypatch, SECRETS_DIR="/no/such/folder") == (
        "SECRETS_DIR: /no/such/folder is not a folder"
    )


def test_a_file_that_cannot_be_read_is_one_line(secret_files: Path) -> None:
    (secret_files / "webhook_secret").write_bytes(b"\xff\xfe")

    with pytest.raises(SettingsError, match=r"^SECRETS_DIR: .*webhook_secret.*$"):
        Settings.read()


def test_addresses_lose_their_last_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://localhost:8080/label/")

    assert Settings.read().label_studio_url == "http://localhost:8080/label"


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND_URL", "http://environment.internal:9090")

    option = "http://option.internal:9090"
    assert Settings.read(backend_url=option).backend_url == option


def test_the_data_folder_holds_database_and_socket_unless_they_are_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATA_DIR", "/srv/clip")
    inside = Settings.read()
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/clip")
    monkeypatch.setenv("REDIS_URL", "redis://queue:6379/0")
    elsewhere = Settings.read()

    assert inside.database == "sqlite:////srv/clip/clip-backend.sqlite3"
    assert inside.redis == "unix:///srv/clip/redis.sock"
    assert elsewhere.database == "postgresql://db/clip"
    assert elsewhere.redis == "redis://queue:6379/0"


def test_a_deep_data_folder_gets_a_short_socket_of_its_own() -> None:
    deep = Settings.read(data_dir=Path("/srv") / ("d" * 120))
    other = Settings.read(data_dir=Path("/srv") / ("e" * 120))

    assert len(str(deep.redis_socket).encode()) <= LONGEST_SOCKET_PATH
    assert deep.redis_socket == Settings.read(data_dir=deep.data_dir).redis_socket
    assert deep.redis_socket != other.redis_socket


def test_webhooks_must_prove_themselves_once_anything_secret_is_set() -> None:
    assert not Settings.read().requires_auth
    assert Settings.read(webhook_secret=SECRET).requires_auth
    assert Settings.read(basic_auth_user="me", basic_auth_pass=SECRET).requires_auth


# Extra params


def learning(**values: Any) -> LearningSettings:
    return Settings.read(**values).learning


@pytest.mark.parametrize("nothing", [None, "", {}, "{}"])
def test_no_extra_params_change_nothing(nothing: object) -> None:
    assert parse_extra_params(nothing) == {}


def test_extra_params_can_be_an_object_or_json_text() -> None:
    params = {"query_strategy": "entropy", "prompts": {"Tee": ["a photo of a t-shirt"]}}

    assert parse_extra_params(params) == params
    assert parse_extra_params(json.dumps(params)) == params


def test_extra_params_override_what_they_name_and_nothing_else() -> None:
    ours = learning(query_strategy="least", min_annotations=3, retrain_delay=9)

    project = ours.overridden_by({"min_annotations": 12, "score": "uncertainty"})

    assert project.min_annotations == 12
    assert project.score.value == "uncertainty"
    assert project.query_strategy.value == "least"
    assert project.retrain_delay == 9


def test_an_override_with_the_default_s_value_still_overrides() -> None:
    ours = learning(query_strategy="entropy", min_annotations=5)

    project = ours.overridden_by({"query_strategy": "margin", "min_annotations": 1})

    assert project.query_strategy.value == "margin"
    assert project.min_annotations == 1


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"querry_strategy": "entropy"}, "querry_strategy: is not known"),
        ({"query_strategy": "best"}, "query_strategy: "),
        ({"score": 1}, "score: "),
        ({"min_annotations": 0}, "min_annotations: "),
        ({"retrain_delay": "soon"}, "retrain_delay: "),
        ({"prompts": {"Tee": []}}, "prompts.Tee: "),
        ({"prompts": {"Tee": "a t-shirt"}}, "prompts.Tee: "),
        ({"prompts": {"Tee": [1]}}, "prompts.Tee.0: "),
        ({"prompts": ["Tee"]}, "prompts: "),
        ([1, 2], "extra params: "),
        (7, "extra params: "),
        ("[1]", "extra params: "),
        ("{query_strategy: entropy}", "extra params: "),
        ('{"query_strategy": "best"}', "query_strategy: "),
    ],
)
def test_wrong_extra_params_are_a_sentence_that_names_the_key_and_the_known_ones(
    params: object, named: str
) -> None:
    with pytest.raises(RequestError) as caught:
        parse_extra_params(params)

    message = str(caught.value)
    assert message.startswith("extra params: ")
    assert named in message
    assert "Known keys: query_strategy, score, retrain_delay, min_annotations, prompts" in message
