"""What is left of the work when Redis dies, forgets everything or is full."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from flask.testing import FlaskClient

from backend import assembly
from backend.api.routes import ApiServices, create_app
from backend.clip.background import BackgroundEncoder
from backend.jobs.queue import JobQueue
from backend.jobs.services import Services
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind, Request
from tests.integration.conftest import data_uri, redis_program, wait_until, work_until
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs signals"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


class RedisServer:
    """A Redis of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.start()

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self._process = subprocess.Popen([redis_program(), *options], stdout=subprocess.DEVNULL)
        wait_until(self.socket.exists, "Redis listens")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def say(self, *command: str) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.execute_command(*command)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("r"))
    yield server
    server.kill()


Fault = Callable[[RedisServer], None]


def kill_and_start(server: RedisServer) -> None:
    server.kill()
    server.start()


def empty(server: RedisServer) -> None:
    server.say("FLUSHALL")


@pytest.mark.parametrize("fault", [kill_and_start, empty])
def test_a_worker_whose_redis_fails_under_a_job_goes_on(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    server: RedisServer,
    fault: Fault,
) -> None:
    ids = label_studio.add_tasks(*(data_uri(name) for name in ("red", "green", "blue")))
    label_studio.annotate(ids[0], "red")
    failures: list[Fault] = [fault]

    def before(method: str, path: str) -> None:
        # In the midst of a job.
        if path == "/api/tasks" and failures:
            failures.pop()(server)

    def is_done() -> bool:
        version = store.versions.active(PROJECT)
        return version is not None and label_studio.predicted(version.name).keys() == {*ids[1:]}

    label_studio.before = before
    store.requests.add_all([Request(PROJECT, kind) for kind in (Kind.TRAIN, Kind.SYNC)])
    with closing(JobQueue(server.url)) as queue:
        work_until(services, queue, is_done)

    assert failures == []
    assert is_done()
    assert store.versions.names(PROJECT) == [store.versions.active(PROJECT).name]  # type: ignore[union-attr]
    assert label_studio.predicted() == dict.fromkeys(ids[1:], 1)


def lose_redis_under_a_job(
    store: Store, label_studio: FakeLabelStudio, lose: Callable[[], None]
) -> Callable[[], bool]:
    """Have Redis fail in the midst of a training; return what tells that it is over."""
    ids = label_studio.add_tasks(*(data_uri(name) for name in ("red", "green", "blue")))
    label_studio.annotate(ids[0], "red")
    losses = [lose]

    def before(method: str, path: str) -> None:
        if path == "/api/tasks" and losses:
            losses.pop()()

    label_studio.before = before
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    return lambda: store.versions.active(PROJECT) is not None


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the worker has said, without RQ's and the clock's own."""
    return [
        record.getMessage().partition(" (")[0]
        for record in caplog.records
        if record.name == "backend.jobs.worker" and not record.getMessage().startswith("clock")
    ]


@pytest.mark.parametrize("lose", [RedisServer.kill, RedisServer.freeze])
def test_a_worker_is_stopped_quietly_while_redis_is_away(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    lose: Fault,
) -> None:
    is_trained = lose_redis_under_a_job(store, label_studio, lambda: lose(server))

    with closing(JobQueue(server.url)) as queue:
        work_until(services, queue, is_trained)

    assert messages(caplog) == ["worker waits for Redis"]
    assert [record for record in caplog.records if record.exc_info] == []


def test_the_same_worker_goes_on_when_redis_is_back(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "backend")
    is_trained = lose_redis_under_a_job(store, label_studio, server.kill)

    def has_gone_on() -> bool:
        if is_trained() and not server.socket.exists() and messages(caplog):
            server.start()
        return "worker goes on" in messages(caplog)

    with closing(JobQueue(server.url)) as queue:
        work_until(services, queue, has_gone_on)

    assert messages(caplog) == ["worker waits for Redis", "worker goes on"]


def test_what_a_full_redis_refuses_stays_wanted(store: Store, server: RedisServer) -> None:
    queue = JobQueue(server.url)
    server.say("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.say("CONFIG", "SET", "maxmemory", "1")
    request = Request(PROJECT, Kind.TRAIN)
    store.requests.add(request)

    with pytest.raises(redis.RedisError, match="maxmemory"):
        queue.enqueue(request)
    server.say("CONFIG", "SET", "maxmemory", "0")
    queue.enqueue(request)

    assert queue.lengths()["train"] == 1
    assert store.requests.due() == [request]
    queue.close()


@pytest.fixture
def client(services: Services) -> Iterator[FlaskClient]:
    settings = Settings.read(redis_url="redis://127.0.0.1:9/0", image_hosts="127.0.0.1")
    background = BackgroundEncoder(lambda: services.predictor.encoder)
    background.start()
    with assembly.image_fetcher(settings, None) as images:
        limits = assembly.image_limits(settings)
        app = create_app(ApiServices(settings, services.store, background, images, limits))
        yield app.test_client()


def test_the_api_needs_no_redis(client: FlaskClient, store: Store) -> None:
    project = {"id": PROJECT, "label_config": CONFIG}
    tasks = [{"id": 1, "data": {"image": data_uri("red")}}]

    health = client.get("/health")
    told = client.post("/webhook", json={"action": "ANNOTATION_CREATED", "project": project})
    predicted = client.post("/predict", json={"project": f"{PROJECT}.1", "tasks": tasks})

    assert (health.status_code, told.status_code, predicted.status_code) == (200, 201, 200)
    assert Kind.TRAIN in {item.request.kind for item in store.requests.waiting(PROJECT)}
