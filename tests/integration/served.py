"""A real server: gunicorn as `clip-backend serve` starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.integration.conftest import PATIENCE, wait_until
from tests.integration.test_supervisor import environment


@dataclass(frozen=True)
class Served:
    """A running server, and what its log tells."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def worker(self) -> int:
        """The process that answers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (worker,) = map(int, children.read_text().split())
        return worker

    def is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return bool(httpx.get(f"{self.url}/health").json()["encoder"] == "ready")
        return False


@contextmanager
def served(folder: Path, **variables: str) -> Iterator[Served]:
    """Yield a server whose encoder is loaded; its log must show no accident."""
    values = environment(folder, **variables)
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend.cli", "serve"], env=values, stderr=file
        )
    server = Served(int(values["PORT"]), log, process)
    try:
        wait_until(server.is_ready, "the encoder is loaded")
        yield server
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE)
