"""Which pictures and encoders are in use, and the end of those that nobody uses any more."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from typing import TypeVar

import sqlalchemy as sa

from backend.store.embeddings import digest
from backend.store.requests import NO_PROJECT, SKEW
from backend.store.schema import (
    Database,
    embeddings,
    encoders,
    findings,
    history,
    images,
    projects,
    requests,
    tasks,
    versions,
)

# Rows of one transaction: other writers wait for some ten milliseconds.
CHUNK = 1000

T = TypeVar("T", int, str)


@dataclass(frozen=True)
class Removed:
    """What one transaction has removed."""

    pictures: int = 0
    embeddings: int = 0


class Usage:
    """When pictures and encoders were last used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def mark(self, sources: Iterable[str], since: float) -> None:
        """Mark pictures as in use that were not marked or saved since a time (Unix time)."""
        digests = iter(sorted({digest(source) for source in sources}))
        # What lies ahead was written before the clock went back.
        is_stale = sa.or_(images.c.used_at < since, images.c.used_at > time.time() + SKEW)
        while chunk := list(islice(digests, CHUNK)):
            stale = sa.and_(self._database.among(images.c.source, chunk), is_stale)
            with self._database.write() as connection:
                # In the order in which pictures are saved, so that neither waits for the other.
                found = list(
                    connection.scalars(
                        sa.select(images.c.source)
                        .where(stale)
                        .order_by(images.c.source)
                        .with_for_update()
                    )
                )
                if found:
                    connection.execute(
                        sa.update(images)
                        .where(self._database.among(images.c.source, found))
                        .values(used_at=time.time())
                    )

    def mark_encoders(self, encoder: str) -> None:
        """Mark as in use an encoder and those of the connected projects' active versions.

        One that is seen for the first time counts as used now.
        """
        now = time.time()
        seen = self._distinct(embeddings.c.encoder)
        active = sa.select(versions.c.encoder).join(
            projects,
            sa.and_(
                projects.c.id == versions.c.project_id,
                projects.c.model_version == versions.c.name,
            ),
        )
        insert = self._database.insert(encoders)
        with self._database.write() as connection:
            in_use = {encoder, *connection.scalars(active.where(projects.c.connected))}
            for name in sorted({*seen, *in_use}):
                row = insert.values(name=name, used_at=now)
                connection.execute(
                    row.on_conflict_do_update(index_elements=["name"], set_={"used_at": now})
                    if name in in_use
                    else row.on_conflict_do_nothing()
                )

    def remove_unused(self, before: float) -> Iterator[Removed]:
        """Remove pictures and encoders that were last used before a time (Unix time).

        With them go the embeddings that no picture or encoder is left of. Each item that is
        yielded is one short transaction. A task that comes to refer to a picture at that moment
        is embedded again.
        """
        yield from self._remove_pictures(before)
        yield from self._remove_embeddings(before)
        with self._database.write() as connection:
            connection.execute(sa.delete(encoders).where(encoders.c.used_at < before))

    def project_ids(self) -> set[int]:
        """Return the projects that anything stored belongs to."""
        tables = (tasks, versions, history, findings, requests)
        found = {
            project_id for table in tables for project_id in self._distinct(table.c.project_id)
        }
        return found - {NO_PROJECT}

    def _remove_pictures(self, before: float) -> Iterator[Removed]:
        unused = images.c.used_at < before
        last = ""
        while True:
            query = (
                sa.select(images.c.source)
                .where(images.c.source > last, unused)
                .order_by(images.c.source)
                .limit(CHUNK)
            )
            with self._database.read() as connection:
                chunk = list(connection.scalars(query))
            if not chunk:
                return
            last = chunk[-1]
            with self._database.write() as connection:
                # Not those that were saved or marked meanwhile.
                found = list(
                    connection.scalars(
                        sa.select(images.c.source)
                        .where(self._database.among(images.c.source, chunk), unused)
                        .order_by(images.c.source)
                        .with_for_update()
                    )
                )
                connection.execute(
                    sa.delete(images).where(self._database.among(images.c.source, found))
                )
            yield Removed(pictures=len(found))

    def _remove_embeddings(self, before: float) -> Iterator[Removed]:
        shown = sa.exists().where(images.c.content == embeddings.c.content)
        outdated = sa.exists().where(
            encoders.c.name == embeddings.c.encoder, encoders.c.used_at < before
        )
        unused = sa.or_(sa.not_(shown), outdated)
        key = sa.tuple_(embeddings.c.encoder, embeddings.c.content)
        last = ("", "")
        while True:
            query = (
                sa.select(embeddings.c.encoder, embeddings.c.content)
                .where(key > sa.tuple_(*map(sa.literal, last)), unused)
                .order_by(embeddings.c.encoder, embeddings.c.content)
                .limit(CHUNK)
            )
            with self._database.read() as connection:
                chunk = connection.execute(query).all()
            if not chunk:
                return
            last = (chunk[-1].encoder, chunk[-1].content)
            removed = 0
            with self._database.write() as connection:
                for encoder, rows in groupby(chunk, attrgetter("encoder")):
                    contents = [row.content for row in rows]
                    removed += connection.execute(
                        sa.delete(embeddings).where(
                            embeddings.c.encoder == encoder,
                            self._database.among(embeddings.c.content, contents),
                            unused,
                        )
                    ).rowcount
            yield Removed(embeddings=removed)

    def _distinct(self, column: sa.Column[T]) -> list[T]:
        # From one value to the next in the index: `SELECT DISTINCT` would read every row.
        found: list[T] = []
        query = sa.select(sa.func.min(column))
        with self._database.read() as connection:
            value = connection.scalar(query)
            while value is not None:
                found.append(value)
                value = connection.scalar(query.where(column > value))
        return found
