"""Three APIs and three workers behind a plain proxy, on one PostgreSQL and one Redis."""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from PIL import ImageColor

from backend.jobs.queue import JobQueue
from backend.store import Store
from backend.store.requests import Kind
from backend.store.schema import requests
from tests.integration.conftest import PATIENCE, PictureServer, free_port, wait_until
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs signals"),
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
]

REPLICAS = 3

# Each picture under one name: aqua is cyan.
COLOURS = sorted({ImageColor.getrgb(name): name for name in ImageColor.colormap}.values())


class Proxy(socketserver.ThreadingTCPServer):
    """A plain proxy: each connection to the next API in turn, past those that take none."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, ports: list[int]) -> None:
        self.answered: Counter[int] = Counter()
        turns = count()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                turn = next(turns)
                for step in range(len(ports)):
                    port = ports[(turn + step) % len(ports)]
                    with suppress(ConnectionRefusedError), socket.socket() as api:
                        api.connect(("127.0.0.1", port))
                        proxy.answered[port] += 1
                        asking = threading.Thread(
                            target=pump, args=(self.request, api), daemon=True
                        )
                        asking.start()
                        pump(api, self.request)
                        return

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class Deployment:
    """The processes, and what a Label Studio and its annotators do with them."""

    def __init__(
        self, environment: dict[str, str], store: Store, label_studio: FakeLabelStudio, log: Path
    ) -> None:
        self.store = store
        self.label_studio = label_studio
        self._environment = {**os.environ, **environment}
        self._log = log.open("w")
        ports = [free_port() for _ in range(REPLICAS)]
        self.apis = {port: self._start("serve", PORT=str(port)) for port in ports}
        self.workers = [self._start("worker") for _ in range(REPLICAS)]
        self.proxy = Proxy(ports)
        self._thread = threading.Thread(target=self.proxy.serve_forever, args=(0.01,))
        self._thread.start()

    def _start(self, command: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "backend.cli", command],
            env=self._environment | environment,
            stdout=self._log,
            stderr=self._log,
        )

    def close(self) -> None:
        self.proxy.shutdown()
        self._thread.join()
        self.proxy.server_close()
        for process in (*self.apis.values(), *self.workers):
            process.kill()
            process.wait()
        self._log.close()

    def ask(self, path: str, **body: Any) -> Any:
        """Send a request as Label Studio does, on a connection of its own."""
        answer = httpx.post(
            self.proxy.url + path,
            json=body,
            timeout=PATIENCE,
            headers={"Connection": "close"},
        )
        assert answer.is_success, answer.text
        return answer.json()

    def tell(self, action: str) -> None:
        self.ask("/webhook", action=action, project={"id": PROJECT, "label_config": CONFIG})

    def annotate(self, task_id: int, choice: str) -> None:
        self.label_studio.annotate(task_id, choice)
        self.tell("ANNOTATION_CREATED")

    def predict(self, ids: list[int]) -> list[dict[str, Any]]:
        tasks = [{"id": key, "data": self.label_studio.tasks[key]["data"]} for key in ids]
        answer = self.ask("/predict", project=f"{PROJECT}.1", label_config=CONFIG, tasks=tasks)
        results: list[dict[str, Any]] = answer["results"]
        return results

    def is_settled(self, *, versions: int) -> bool:
        """Tell whether so many versions are there, and nothing is to be done but later."""
        waiting = self.store.requests.waiting(PROJECT)
        return len(self.store.versions.names(PROJECT)) == versions and all(
            item.request.kind is Kind.RECONCILE for item in waiting
        )

    def kill_who_does(self, kind: Kind) -> None:
        """Kill the worker that holds a request of this kind."""
        with self.store.database.read() as connection:
            owner = connection.scalar(
                sa.select(requests.c.owner).where(
                    requests.c.project_id == PROJECT, requests.c.kind == kind.value
                )
            )
        os.kill(int(owner.split(":")[-2]), signal.SIGKILL)


@pytest.fixture
def deployment(
    store: Store,
    database_url: str,
    redis_url: str,
    label_studio: FakeLabelStudio,
    tmp_path: Path,
) -> Iterator[Deployment]:
    environment = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "CLIP_MODEL": "tiny",
        "DEVICE": "cpu",
        "HOST": "127.0.0.1",
        "IMAGE_HOSTS": "127.0.0.1",
        "RETRAIN_DELAY": "0",
        "RECONCILE_EVERY": "600",
        "DATA_DIR": str(tmp_path / "data"),
    }
    deployment = Deployment(environment, store, label_studio, tmp_path / "log")
    try:
        with closing(JobQueue(redis_url)) as queue:
            wait_until(lambda: len(queue.workers()) == REPLICAS, "every worker runs")
        for port in deployment.apis:
            wait_until(lambda port=port: is_ready(port), "every API has loaded CLIP")  # type: ignore[misc]
        yield deployment
    finally:
        deployment.close()


def is_ready(port: int) -> bool:
    with suppress(httpx.TransportError):
        answer = httpx.get(f"http://127.0.0.1:{port}/health")
        return bool(answer.json()["encoder"] == "ready")
    return False


def test_no_work_is_done_twice_and_whoever_dies_nothing_is_lost(
    deployment: Deployment, label_studio: FakeLabelStudio, pictures: PictureServer, store: Store
) -> None:
    ids = label_studio.add_tasks(*(f"{pictures.url}/{name}" for name in COLOURS))

    # Connected: each picture is fetched and encoded once over all workers, in several chunks.
    for _ in range(2 * REPLICAS):
        deployment.ask("/setup", project=f"{PROJECT}.1", schema=CONFIG)
    wait_until(lambda: deployment.is_settled(versions=1), "all is embedded and predicted")
    assert sorted(pictures.paths) == sorted(f"/{name}" for name in COLOURS)
    assert store.embeddings.count() == len(COLOURS)

    # Annotated: one training for each change, and the same answer from each replica.
    for changes, (task_id, choice) in enumerate(
        zip(ids[::30], ("red", "green", "blue", "red"), strict=False), start=1
    ):
        deployment.annotate(task_id, choice)
        wait_until(lambda: deployment.is_settled(versions=1 + changes), "it is learnt")  # noqa: B023
        version = store.versions.names(PROJECT)[0]
        answers = [deployment.predict(ids[:20]) for _ in range(REPLICAS)]
        assert answers == [answers[0]] * REPLICAS
        assert {item["model_version"] for item in answers[0]} == {version}
    assert set(deployment.proxy.answered) == set(deployment.apis)

    # One API and the worker that pushes predictions die midway.
    victim, process = next(iter(deployment.apis.items()))
    killed = threading.Event()

    def before(method: str, path: str) -> None:
        if path.endswith("/import/predictions") and not killed.is_set():
            killed.set()
            process.kill()
            process.wait()
            deployment.kill_who_does(Kind.REFRESH)

    trained = len(store.versions.names(PROJECT))
    answered = deployment.proxy.answered[victim]
    label_studio.before = before
    deployment.annotate(ids[1], "green")
    assert killed.wait(PATIENCE)
    for _ in range(REPLICAS):
        deployment.annotate(ids[2], "blue")
        deployment.predict(ids[:20])
    # Three annotations of one task that agree are one label.
    wait_until(lambda: deployment.is_settled(versions=trained + 2), "the others do the rest")

    version = store.versions.names(PROJECT)[0]
    labelled = {*ids[::30][:4], ids[1], ids[2]}
    assert sum(worker.poll() is not None for worker in deployment.workers) == 1
    assert deployment.proxy.answered[victim] <= answered + 1
    assert label_studio.predicted(version) == dict.fromkeys(set(ids) - labelled, 1)
    assert label_studio.project is not None
    assert label_studio.project["model_version"] == version
    active = store.versions.active(PROJECT)
    assert active is not None
    assert active.report["colour"]["labels"] == len(labelled)
    assert len(pictures.paths) == len(COLOURS)
