"""`backup` and `restore`: the database in one file; `migrate-store`: to another database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from backend.errors import BackupError, MigrationError, QueueError
from backend.jobs.queue import JobQueue
from backend.processes import interrupted_by_sigterm, only_one
from backend.settings import Settings
from backend.store import backup
from backend.store.schema import Database, without_secrets
from backend.store.transfer import transfer


@interrupted_by_sigterm()
def back_up(settings: Settings, file: Path) -> None:
    """Write the database into a new file. Raises BackupError."""
    with _database(settings) as database, _bar("backing up") as report:
        backup.write(database, file, report)
    _say(f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB")


@interrupted_by_sigterm()
def restore(settings: Settings, file: Path, *, overwrite: bool) -> None:
    """Put a backup into the database.

    Raises BackupError, also where a backend runs that could write meanwhile.
    """
    with only_one(settings.data_dir):
        _check_no_worker(settings)
        with (
            backup.opened(file) as source,
            _database(settings) as database,
            _bar("restoring") as report,
        ):
            backup.restore(database, source, report, overwrite=overwrite)
    _say(f"restored {file}: once the backend runs, it learns what was labelled since")


def migrate_store(settings: Settings, source_url: str, target_url: str) -> None:
    """Move a database to an empty one, of either engine; what was interrupted goes on.

    Raises MigrationError, and BackupError where a backend runs that could write meanwhile.
    """
    source_address, target_address = _address(source_url), _address(target_url)
    if source_address == target_address:
        raise MigrationError("--from and --to are the same database")
    file = source_address.database
    if source_address.get_backend_name() == "sqlite" and not (file and Path(file).is_file()):
        raise MigrationError(f"{file} does not exist: check --from")
    with only_one(settings.data_dir):
        _check_no_worker(settings)
        with (
            closing(Database(source_address)) as source,
            closing(Database(target_address)) as target,
            _bar("moving") as report,
        ):
            transfer(source, target, report)
    _say(
        f"moved, and compared row by row: now set DATABASE_URL to {without_secrets(target_address)}"
    )


def _address(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except sa.exc.ArgumentError:
        raise MigrationError(
            "--from and --to must be URLs such as sqlite:////data/clip-backend.sqlite3 and "
            "postgresql+psycopg://user:password@host/name"
        ) from None


def _check_no_worker(settings: Settings) -> None:
    queue = JobQueue(settings.redis)
    try:
        workers = queue.workers()
    except QueueError:
        # Without Redis no worker does anything.
        workers = []
    finally:
        queue.close()
    if workers:
        raise BackupError(
            f"The backend is running ({len(workers)} worker): stop every `clip-backend up`, "
            "`serve` and `worker` first"
        )


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _bar(description: str) -> Iterator[backup.Report]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        shown = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(shown, completed=done, total=total)


def _say(sentence: str) -> None:
    Console().print(sentence, highlight=False, markup=False, soft_wrap=True)
