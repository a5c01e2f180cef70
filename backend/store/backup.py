"""The whole database in one file, and back.

The file is itself a database of this program, in SQLite whichever engine it was made from. So a
backup moves to the other engine as well, and one of an older release is upgraded like any database.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from backend.errors import BackupError
from backend.store.requests import Kind, Request, Requests
from backend.store.schema import (
    Database,
    embeddings,
    history,
    images,
    metadata,
    projects,
    requests,
    tasks,
    versions,
)

# Rows in memory at once: those of `versions` can be megabytes each.
CHUNK = 100

# SQLite's files start with the first, and have the second at byte 68: a backup says "clip" there.
_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = 0x636C6970

# How many rows there are of each table: what says that a backup is complete.
_inventory = sa.Table(
    "backup",
    sa.MetaData(),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("rows", sa.Integer, nullable=False),
)

# The others fill by themselves as soon as a worker runs.
WORTH_KEEPING = (projects, tasks, images, embeddings, versions, history)

# Called with the numbers of rows that are done and that there are.
Report = Callable[[int, int], None]


def write(database: Database, file: Path, report: Report) -> None:
    """Copy a database, as it is at one moment, to a new file that only its owner may read.

    The file appears under its name once it is complete. Raises BackupError.
    """
    if file.exists():
        raise BackupError(f"{file} exists: choose another name, or remove it")
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _fill(database, partial, report)
        _sync(partial)
        partial.rename(file)
        _sync(file.parent)
    except (OSError, sqlite3.Error, sa.exc.OperationalError) as error:
        reason = getattr(error, "orig", error)
        raise BackupError(f"{file} cannot be written ({reason}): choose another place") from None
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)


@contextmanager
def opened(file: Path) -> Iterator[Database]:
    """Yield a backup's rows as a database of this release; the file itself stays as it is.

    Raises BackupError for a file that is no backup, not whole, or of a newer release.
    """
    try:
        with file.open("rb") as content:
            header = content.read(100)
            size = os.fstat(content.fileno()).st_size
    except OSError as error:
        raise BackupError(f"{file} cannot be read ({error.strerror})") from None
    _check_header(file, header, size)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "backup.sqlite3"
        try:
            shutil.copyfile(file, copy)
        except OSError as error:
            raise BackupError(
                f"{file} cannot be copied to {folder} ({error.strerror}): "
                "set TMPDIR to a folder with room for it"
            ) from None
        _check_content(file, copy)
        database = Database(_url(copy))
        try:
            yield database
        finally:
            database.close()


def restore(database: Database, source: Database, report: Report, *, overwrite: bool) -> None:
    """Make a database hold what another one does, in one transaction.

    All work is asked for again: Label Studio has gone on since. Raises BackupError where there is
    something to lose and `overwrite` does not say to lose it.
    """
    with source.snapshot() as rows, database.write() as connection:
        if connection.dialect.name == "postgresql":
            names = ", ".join(table.name for table in metadata.sorted_tables)
            connection.execute(sa.text(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE"))
        if not overwrite and any(counts(connection)[table.name] for table in WORTH_KEEPING):
            raise BackupError(
                "The database is not empty: --overwrite replaces what it holds "
                "(`clip-backend backup` keeps it first)"
            )
        for table in metadata.sorted_tables:
            connection.execute(sa.delete(table))
        for table, page in _pages(rows, report):
            connection.execute(sa.insert(table), without_owner(table, page))
        ask_for_everything(database, connection)


def ask_for_everything(database: Database, connection: Connection) -> None:
    """Ask for all work on every connected project: Label Studio has gone on since."""
    connected = list(connection.scalars(sa.select(projects.c.id).where(projects.c.connected)))
    Requests(database).add_all(
        [
            Request(project_id, kind)
            for project_id in connected
            for kind in (Kind.RECONCILE, Kind.TRAIN, Kind.SYNC, Kind.SWEEP)
        ],
        within=connection,
    )


def without_owner(table: sa.Table, page: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows as another database gets them: workers of this one hold nothing there."""
    if table is not requests:
        return page
    return [row | {"owner": None, "lease_until": 0.0} for row in page]


def _fill(database: Database, file: Path, report: Report) -> None:
    target = Database(_url(file))
    try:
        # One transaction: waiting for the disk after each page takes most of the time.
        with database.snapshot() as source, target.write() as connection:
            inventory = counts(source)
            if not any(inventory[table.name] for table in WORTH_KEEPING):
                raise BackupError(
                    "The database is empty, there is nothing to back up: "
                    "check DATABASE_URL or DATA_DIR"
                )
            for table, page in _pages(source, report):
                connection.execute(sa.insert(table), page)
            _inventory.create(connection)
            connection.execute(
                sa.insert(_inventory),
                [{"name": name, "rows": count} for name, count in inventory.items()],
            )
    finally:
        target.close()
    with closing(sqlite3.connect(file)) as raw:
        # One file, without a journal beside it.
        raw.execute("PRAGMA journal_mode = DELETE")
        raw.execute(f"PRAGMA application_id = {_APPLICATION_ID}")


def _pages(source: Connection, report: Report) -> Iterator[tuple[sa.Table, list[dict[str, Any]]]]:
    total = sum(counts(source).values())
    done = 0
    for table in metadata.sorted_tables:
        result = source.execution_options(yield_per=CHUNK).execute(sa.select(table))
        for page in result.mappings().partitions():
            yield table, [dict(row) for row in page]
            done += len(page)
            report(done, total)


def counts(connection: Connection) -> dict[str, int]:
    """Return the number of rows by table."""
    return {
        table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        for table in metadata.sorted_tables
    }


def _check_header(file: Path, header: bytes, size: int) -> None:
    application = int.from_bytes(header[68:72], "big")
    if not header.startswith(_MAGIC) or application != _APPLICATION_ID:
        raise BackupError(
            f"{file} is no backup: give a file that `clip-backend backup` has written"
        )
    # A page of 65536 bytes does not fit into the field and is stored as 1.
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    if size != page_size * int.from_bytes(header[28:32], "big"):
        raise _damaged(file)


def _check_content(file: Path, copy: Path) -> None:
    from backend.store.upgrade import is_known

    try:
        with closing(sqlite3.connect(copy)) as raw:
            (revision,) = raw.execute("SELECT version_num FROM alembic_version").fetchone()
            if not is_known(revision):
                raise BackupError(
                    f"{file} is of a newer release (schema {revision}): "
                    "install that release to restore it"
                )
            inventory: Mapping[str, int] = dict(raw.execute("SELECT name, rows FROM backup"))
            whole = raw.execute("PRAGMA quick_check").fetchone() == ("ok",) and all(
                raw.execute(f'SELECT count(*) FROM "{name}"').fetchone() == (count,)  # noqa: S608
                for name, count in inventory.items()
            )
    except (sqlite3.Error, TypeError):
        whole = False
    if not whole:
        raise _damaged(file)


def _damaged(file: Path) -> BackupError:
    return BackupError(f"{file} is damaged or cut off: restore another backup")


def _url(file: Path) -> sa.URL:
    return sa.URL.create("sqlite", database=str(file))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
