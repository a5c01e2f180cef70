"""The Dockerfile, as far as it can be held without an engine."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.deployment.conftest import ROOT, check_command, check_settings, find_program

DOCKERFILE = (ROOT / "Dockerfile").read_text()
FINAL = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


def instruction(name: str) -> list[str]:
    """Return what the last instruction of that name in the result is, in JSON."""
    (found,) = re.findall(rf"^\s*{name} (\[.*\])$", FINAL, re.MULTILINE)
    parsed: list[str] = json.loads(found)
    return parsed


def final_environment() -> dict[str, str]:
    joined = FINAL.replace("\\\n", " ")
    lines = re.findall(r"^ENV (.*)$", joined, re.MULTILINE)
    return dict(part.split("=", 1) for line in lines for part in shlex.split(line))


def test_hadolint_finds_nothing() -> None:
    program = find_program("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed")

    done = subprocess.run(
        [program, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout


def test_it_runs_the_readme_s_command() -> None:
    (_, default) = re.findall(r"^\s*CMD (\[.*\])$", FINAL, re.MULTILINE)

    assert instruction("ENTRYPOINT") == ["clip-backend"]
    check_command(json.loads(default))


def test_it_runs_as_nobody_in_particular() -> None:
    (user,) = re.findall(r"^USER (.*)$", FINAL, re.MULTILINE)

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_all_that_is_written_goes_to_the_volume_or_to_tmp() -> None:
    environment = final_environment()

    check_settings(["DATA_DIR"])
    for name in ("HOME", "DATA_DIR", "MPLCONFIGDIR"):
        assert re.match(r"/(data|tmp)\b", environment[name]), name
    assert re.findall(r"^VOLUME (.*)$", FINAL, re.MULTILINE) == ["/data"]


def test_compilers_and_caches_stay_in_other_stages() -> None:
    assert "apt-get" not in FINAL
    assert all("--no-cache-dir" in line for line in FINAL.splitlines() if "pip install" in line)


def test_what_is_copied_is_sent_to_the_build() -> None:
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copies for source in line.split()}

    assert sources == set(sent)
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the image's Python has tomllib")
def test_the_dependencies_that_are_installed_are_those_of_the_package() -> None:
    (program,) = re.findall(r"python -c '(.*?)'", DOCKERFILE.replace("\\\n", ""), re.DOTALL)

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    lines = done.stdout.splitlines()
    assert {"flask>=3.0", "psycopg[binary]>=3.1"} <= set(lines)


# HEALTHCHECK


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[int]:
    status = request.param

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield http.server_port
    http.shutdown()
    thread.join()
    http.server_close()


def check_health(port: int) -> int:
    check = re.findall(r"^\s*CMD (\[.*\])$", FINAL, re.MULTILINE)[0]
    python, *arguments = json.loads(check)
    assert python == "python"
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PORT": str(port)},
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode


@pytest.mark.parametrize("server", [200], indirect=True)
def test_a_backend_that_answers_is_healthy(server: int) -> None:
    assert check_health(server) == 0


@pytest.mark.parametrize("server", [503], indirect=True)
def test_a_backend_that_fails_is_not(server: int) -> None:
    assert check_health(server) == 1


def test_a_backend_that_does_not_listen_is_not() -> None:
    assert check_health(9) == 1
