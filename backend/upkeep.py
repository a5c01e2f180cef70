"""`backup` and `restore`: the database in one file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from backend.errors import BackupError
from backend.jobs.queue import JobQueue
from backend.processes import only_one
from backend.settings import Settings
from backend.store import backup
from backend.store.schema import Database


def back_up(settings: Settings, file: Path) -> None:
    """Write the database into a new file. Raises BackupError."""
    with _database(settings) as database, _bar("backing up") as report:
        backup.write(database, file, report)
    _say(f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB")


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


def _check_no_worker(settings: Settings) -> None:
    queue = JobQueue(settings.redis)
    try:
        workers = queue.workers()
    except redis.RedisError:
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
