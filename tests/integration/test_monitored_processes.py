"""`clip-backend up` as an operator watches it: both ports, and a log of JSON."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from backend.store import Store
from backend.store.requests import Kind, Request
from tests.integration.conftest import PATIENCE, wait_until
from tests.integration.test_metrics import Samples, samples_of
from tests.integration.test_supervisor import UP, environment, free_port

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")


class Watched:
    """A running backend, its metrics and its log."""

    def __init__(self, folder: Path) -> None:
        self.ports = {"api": free_port(), "worker": free_port()}
        self._database = f"sqlite:///{folder / 'data' / 'clip-backend.sqlite3'}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                UP,
                env=environment(
                    folder / "data",
                    PORT=str(self.ports["api"]),
                    METRICS_PORT=str(self.ports["worker"]),
                    LOG_FORMAT="json",
                    LOG_LEVEL="DEBUG",
                ),
                stderr=log,
            )

    def scrape(self, process: str) -> Samples:
        """Return a process's metrics; none while it does not answer."""
        with suppress(httpx.HTTPError):
            answer = httpx.get(f"http://127.0.0.1:{self.ports[process]}/metrics", timeout=60)
            return samples_of(answer.text)
        return {}

    def ask_for(self, request: Request) -> None:
        store = Store.open(self._database)
        store.requests.add(request)
        store.close()

    def stop(self) -> list[str]:
        """Stop it; return the lines of its log."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        return self._log.read_text().splitlines()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    running = Watched(tmp_path)
    yield running
    running.stop()


def test_api_and_worker_are_scraped_and_every_line_is_an_event(watched: Watched) -> None:
    wait_until(
        lambda: watched.scrape("api").get(("clip_backend_workers",)) == 1,
        "the API tells of a worker that is alive",
    )
    watched.ask_for(Request(999, Kind.TRAIN))
    done = ("clip_backend_jobs_total", "kind=train", "outcome=done")
    wait_until(lambda: watched.scrape("worker").get(done) == 1, "the worker tells of the job")
    wait_until(
        lambda: watched.scrape("api").get(("clip_backend_encoder_loaded",)) == 1,
        "the API has loaded CLIP",
    )
    answer = httpx.get(
        f"http://127.0.0.1:{watched.ports['api']}/metrics", headers={"X-Request-ID": "abc"}
    )

    worker, api = watched.scrape("worker"), watched.scrape("api")
    lines = watched.stop()

    assert worker["clip_backend_encoder_loaded",] == 1
    assert (api["clip_backend_database_up",], api["clip_backend_redis_up",]) == (1, 1)
    assert answer.headers["X-Request-ID"] == "abc"
    events = [json.loads(line) for line in lines]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, events))
    assert any(event.get("job") == "train-999-0" and event["kind"] == "train" for event in events)


def test_a_metrics_port_that_is_taken_ends_the_worker_with_one_line(
    tmp_path: Path, redis_url: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "backend.cli", "worker"],
            env=environment(tmp_path, METRICS_PORT=port, REDIS_URL=redis_url),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: METRICS_PORT: 127.0.0.1:{port} cannot be listened on")
