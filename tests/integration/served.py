"""A real server: gunicorn as `clip-backend serve` starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.integration.conftest import PATIENCE, wait_until
from tests.integration.test_supervisor import environment


@contextmanager
def served(folder: Path, **variables: str) -> Iterator[int]:
    """Yield the port of a server whose encoder is loaded; its log must show no accident."""
    values = environment(folder, **variables)
    port = int(values["PORT"])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend.cli", "serve"], env=values, stderr=log
        )
    try:
        wait_until(lambda: _is_ready(port), "the encoder is loaded")
        yield port
        log_text = Path(folder / "log").read_text()
        assert "Traceback" not in log_text, log_text
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _is_ready(port: int) -> bool:
    with suppress(httpx.HTTPError):
        return bool(httpx.get(f"http://127.0.0.1:{port}/health").json()["encoder"] == "ready")
    return False
