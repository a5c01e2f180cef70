"""A mirror of each project's tasks, so that a refresh need not read them all from Label Studio."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from backend.store.requests import SKEW
from backend.store.schema import Database, tasks

CHUNK = 1000

# Instead of a version: Label Studio holds, or is about to be given, our predictions of what the
# task's data, or the labeling config, were before. No version's name is empty.
OUTDATED = ""

# How a write is begun that somebody may only do as long as a claim is theirs.
Transaction = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True)
class Task:
    """A task's id (None where it has none) and its data."""

    id: int | None
    data: Mapping[str, object]


@dataclass(frozen=True)
class StoredTask(Task):
    """A mirrored task, whether it is open, and whose prediction Label Studio holds of it.

    `model_version` is OUTDATED where its predictions are to be removed before it is predicted.
    """

    id: int
    open: bool
    model_version: str | None = None


@dataclass(frozen=True)
class Progress:
    """How many tasks a project has, how many are open, how many carry the current prediction."""

    tasks: int
    open: int
    predicted: int


class Tasks:
    """The table of tasks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def mirror(
        self,
        project_id: int,
        pages: Iterable[list[StoredTask]],
        *,
        transaction: Transaction | None = None,
    ) -> None:
        """Make the mirror equal to what Label Studio lists, as `put` does."""
        listed: set[int] = set()
        for page in pages:
            listed.update(task.id for task in page)
            self.put(project_id, page, transaction=transaction)
        with self._database.read() as connection:
            known = set(
                connection.scalars(sa.select(tasks.c.id).where(tasks.c.project_id == project_id))
            )
        self.remove(project_id, known - listed, transaction=transaction)

    def put(
        self,
        project_id: int,
        page: Sequence[StoredTask],
        *,
        transaction: Transaction | None = None,
    ) -> None:
        """Add tasks, or bring them up to date; keeps what was predicted and is not outdated."""
        if not page:
            return
        insert = self._database.insert(tasks)
        upsert = insert.on_conflict_do_update(
            index_elements=["project_id", "id"],
            set_={"data": insert.excluded.data, "open": insert.excluded.open},
        )
        rows = [
            {
                "project_id": project_id,
                "id": task.id,
                "data": dict(task.data),
                "open": task.open,
            }
            # Whoever writes several tasks locks them in one order.
            for task in sorted(page, key=lambda task: task.id)
        ]
        outdated = [task.id for task in page if task.model_version == OUTDATED]
        with (transaction or self._database.write)() as connection:
            connection.execute(upsert, rows)
            for chunk in _chunks(outdated):
                self._set(connection, project_id, chunk, model_version=OUTDATED)

    def remove(
        self, project_id: int, ids: Collection[int], *, transaction: Transaction | None = None
    ) -> None:
        """Forget tasks that Label Studio no longer has."""
        for chunk in _chunks(ids):
            with (transaction or self._database.write)() as connection:
                connection.execute(
                    sa.delete(tasks).where(
                        tasks.c.project_id == project_id, self._database.among(tasks.c.id, chunk)
                    )
                )

    def close_all_but(
        self,
        project_id: int,
        finished: Collection[int],
        *,
        transaction: Transaction | None = None,
    ) -> None:
        """Mark the `finished` tasks as closed and all others as open."""
        wanted = set(finished)
        before = self.states(project_id)
        closing = {task_id for task_id, is_open in before.items() if is_open} & wanted
        opening = {task_id for task_id, is_open in before.items() if not is_open} - wanted
        with (transaction or self._database.write)() as connection:
            for ids, is_open in ((closing, False), (opening, True)):
                for chunk in _chunks(ids):
                    self._set(connection, project_id, chunk, open=is_open)

    def open_without(self, project_id: int, model_version: str) -> Iterator[list[StoredTask]]:
        """Yield, in chunks, the open tasks that do not carry that version's prediction."""
        yield from self._pages(
            project_id,
            tasks.c.open.is_(True),
            _lacks(model_version),
        )

    def pending(self, project_id: int, model_version: str) -> set[int]:
        """Return the ids of the open tasks that do not carry that version's prediction."""
        query = sa.select(tasks.c.id).where(
            tasks.c.project_id == project_id, tasks.c.open.is_(True), _lacks(model_version)
        )
        with self._database.read() as connection:
            return set(connection.scalars(query))

    def open(self, project_id: int) -> Iterator[list[StoredTask]]:
        """Yield all open tasks of a project, in chunks."""
        yield from self._pages(project_id, tasks.c.open.is_(True))

    def all(self, project_id: int, *, after: int = -1) -> Iterator[list[StoredTask]]:
        """Yield all tasks of a project, or those with higher ids than `after`, in chunks."""
        yield from self._pages(project_id, tasks.c.id > after)

    def some(self, project_id: int, count: int, *, is_open: bool | None = None) -> list[StoredTask]:
        """Return up to `count` tasks, drawn by their ids: much the same ones as tasks are added."""
        condition = sa.true() if is_open is None else tasks.c.open.is_(is_open)
        query = sa.select(tasks.c.id).where(tasks.c.project_id == project_id, condition)
        with self._database.read() as connection:
            ids = heapq.nsmallest(count, connection.scalars(query), key=_scattered)
        return self.named(project_id, ids)

    def named(self, project_id: int, ids: Sequence[int]) -> list[StoredTask]:
        """Return the tasks of these ids that are there, in the order of `ids`."""
        found = {
            task.id: task
            for chunk in _chunks(ids)
            for page in self._pages(project_id, self._database.among(tasks.c.id, chunk))
            for task in page
        }
        return [found[task_id] for task_id in ids if task_id in found]

    def in_range(self, project_id: int, first: int, last: int) -> list[StoredTask]:
        """Return the tasks with first ≤ id < last."""
        return [
            task
            for page in self._pages(project_id, tasks.c.id >= first, tasks.c.id < last)
            for task in page
        ]

    def mark_predicted(self, project_id: int, ids: Collection[int], model_version: str) -> None:
        """Record that Label Studio holds that version's prediction of these tasks.

        Not of those that are outdated: it may be what was made of their data before.
        """
        self._set_version(project_id, ids, model_version)

    def mark_unpredicted(self, project_id: int, ids: Collection[int]) -> None:
        """Record that Label Studio holds no prediction of ours of these tasks.

        Those that are outdated stay so.
        """
        self._set_version(project_id, ids, None)

    def outdated(self, project_id: int) -> set[int]:
        """Return the tasks whose predictions are to be removed before they are predicted."""
        return self.predicted(project_id, OUTDATED)

    def mark_outdated(self, project_id: int, ids: Collection[int]) -> None:
        """Record that the predictions of tasks are to be removed before they are predicted."""
        self._set_version(project_id, ids, OUTDATED)

    def mark_cleared(self, project_id: int, ids: Collection[int]) -> None:
        """Record that the predictions of tasks that were outdated are removed."""
        for chunk in _chunks(ids):
            with self._database.write() as connection:
                self._set(connection, project_id, chunk, model_version=None)

    def states(self, project_id: int) -> dict[int, bool]:
        """Return whether each task is open."""
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(tasks.c.id, tasks.c.open).where(tasks.c.project_id == project_id)
            )
            return {row.id: row.open for row in rows}

    def mark_shown(self, project_id: int, ids: Collection[int], seconds: float) -> None:
        """Record that annotators' pages may show these tasks for so long.

        It is the same for all: what lies further ahead was written before the clock went back.
        """
        until = time.time() + seconds
        ahead = sa.select(tasks.c.id).where(
            tasks.c.project_id == project_id, tasks.c.shown_until > until + SKEW
        )
        # It looks at all tasks, while which others may write.
        with self._database.read() as connection:
            too_long = list(connection.scalars(ahead))
        # Still shown, perhaps, but before these.
        for some, shown_until in ((too_long, until - SKEW), (ids, until)):
            for chunk in _chunks(some):
                with self._database.write() as connection:
                    self._set(connection, project_id, chunk, shown_until=shown_until)

    def shown(self, project_id: int, limit: int) -> set[int]:
        """Return the tasks that pages may show, those that came to be shown last.

        At most `limit` open ones, and as many that somebody has finished meanwhile: another
        annotator may have been served them at the same time.
        """
        found: set[int] = set()
        with self._database.read() as connection:
            for is_open in (True, False):
                found.update(
                    connection.scalars(
                        sa.select(tasks.c.id)
                        .where(
                            tasks.c.project_id == project_id,
                            tasks.c.open.is_(is_open),
                            tasks.c.shown_until > time.time(),
                        )
                        .order_by(tasks.c.shown_until.desc())
                        .limit(limit)
                    )
                )
        return found

    def predicted(self, project_id: int, model_version: str) -> set[int]:
        """Return the tasks that carry that version's prediction."""
        with self._database.read() as connection:
            return set(
                connection.scalars(
                    sa.select(tasks.c.id).where(
                        tasks.c.project_id == project_id,
                        tasks.c.model_version == model_version,
                    )
                )
            )

    def progress(self, project_id: int, model_version: str | None) -> Progress:
        """Count a project's tasks."""
        is_open = tasks.c.open.is_(True)
        # Not `== None`, which would count the tasks without a prediction.
        carries = tasks.c.model_version == model_version if model_version else sa.false()
        query = sa.select(
            sa.func.count(),
            sa.func.count(sa.case((is_open, 1))),
            sa.func.count(sa.case((sa.and_(is_open, carries), 1))),
        ).where(tasks.c.project_id == project_id)
        with self._database.read() as connection:
            return Progress(*connection.execute(query).one())

    def forget(self, project_id: int) -> None:
        """Drop the mirror of a project, in portions: no other writer waits for long."""
        query = sa.select(tasks.c.id).where(tasks.c.project_id == project_id).limit(10 * CHUNK)
        while True:
            with self._database.read() as connection:
                ids = list(connection.scalars(query))
            if not ids:
                return
            self.remove(project_id, ids)

    def _pages(
        self, project_id: int, *conditions: sa.ColumnElement[bool]
    ) -> Iterator[list[StoredTask]]:
        last = -1
        while True:
            query = (
                sa.select(tasks.c.id, tasks.c.data, tasks.c.open, tasks.c.model_version)
                .where(tasks.c.project_id == project_id, tasks.c.id > last, *conditions)
                .order_by(tasks.c.id)
                .limit(CHUNK)
            )
            with self._database.read() as connection:
                page = [StoredTask(*row) for row in connection.execute(query)]
            if not page:
                return
            last = page[-1].id
            yield page

    def _set_version(
        self, project_id: int, ids: Collection[int], model_version: str | None
    ) -> None:
        for chunk in _chunks(ids):
            with self._database.write() as connection:
                self._set(
                    connection, project_id, chunk, _lacks(OUTDATED), model_version=model_version
                )

    def _set(
        self,
        connection: Connection,
        project_id: int,
        chunk: Sequence[int],
        *conditions: sa.ColumnElement[bool],
        **values: object,
    ) -> None:
        these = tasks.c.project_id == project_id, self._database.among(tasks.c.id, chunk)
        connection.execute(sa.update(tasks).where(*these, *conditions).values(**values))


def _scattered(task_id: int) -> int:
    # Knuth's multiplicative hash: tasks that were imported together lie far apart.
    return task_id * 2654435761 % 2**32


def _lacks(model_version: str) -> sa.ColumnElement[bool]:
    return sa.or_(tasks.c.model_version.is_(None), tasks.c.model_version != model_version)


def _chunks(ids: Collection[int]) -> Iterator[list[int]]:
    iterator = iter(sorted(ids))
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
