"""A database to another one, of either engine, in steps: what was interrupted goes on.

Each page of rows is written in one transaction with how far it has come. In the end both databases
are read once more and compared, table by table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from backend.errors import MigrationError
from backend.store.backup import (
    CHUNK,
    WORTH_KEEPING,
    Report,
    ask_for_everything,
    counts,
    without_owner,
)
from backend.store.schema import Database, metadata, without_secrets

# In the database that is being filled, until it is: whose rows it gets, and how far they are.
_transfer = sa.Table(
    "transfer",
    sa.MetaData(),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("copied", sa.Integer, nullable=False),
    # Of the last row: by the order of the source, whose engine may order text otherwise.
    sa.Column("last_key", sa.JSON),
)

_DIGEST_SIZE = 2**256


def transfer(source: Database, target: Database, report: Report) -> None:
    """Make an empty database hold what another one does, or go on with that.

    All work is asked for again, as after a restore. Raises MigrationError where there is nothing
    to move, where the target holds what did not come from this source, and where the two differ
    in the end.
    """
    with source.snapshot() as rows:
        expected = counts(rows)
        if not any(expected[table.name] for table in WORTH_KEEPING):
            raise MigrationError("The source is empty, there is nothing to move: check --from")
        _begin(target, without_secrets(source.engine.url))
        progress = _Progress(report, total=3 * sum(expected.values()))
        for table in metadata.sorted_tables:
            _copy(rows, target, table, progress)
        for table in metadata.sorted_tables:
            _compare(rows, target, table, progress)
    with target.write() as connection:
        ask_for_everything(target, connection)
        _transfer.drop(connection)


class _Progress:
    """Rows that are done, of those that are copied, read again, and compared."""

    def __init__(self, report: Report, total: int) -> None:
        self._report = report
        self._total = total
        self._done = 0

    def advance(self, count: int) -> None:
        self._done += count
        self._report(self._done, self._total)


def _begin(target: Database, source: str) -> None:
    with target.write() as connection:
        if sa.inspect(connection).has_table(_transfer.name):
            begun = connection.scalar(sa.select(_transfer.c.source).limit(1))
            if begun != source:
                raise MigrationError(
                    f"The target is half filled from {begun}: finish that first, "
                    "or give an empty database"
                )
            return
        if any(counts(connection)[table.name] for table in WORTH_KEEPING):
            raise MigrationError(
                "The target is not empty: give an empty database (nothing was changed)"
            )
        # What a worker leaves in a database without projects.
        for table in metadata.sorted_tables:
            connection.execute(sa.delete(table))
        _transfer.create(connection)
        connection.execute(
            sa.insert(_transfer),
            [
                {"name": table.name, "source": source, "copied": 0, "last_key": None}
                for table in metadata.sorted_tables
            ],
        )


def _copy(source: Connection, target: Database, table: sa.Table, progress: _Progress) -> None:
    this = _transfer.c.name == table.name
    with target.read() as connection:
        copied, last_key = connection.execute(
            sa.select(_transfer.c.copied, _transfer.c.last_key).where(this)
        ).one()
    progress.advance(copied)
    for page in _pages(source, table, after=last_key):
        copied += len(page)
        key = [page[-1][column.name] for column in table.primary_key]
        with target.write() as connection:
            connection.execute(sa.insert(table), without_owner(table, page))
            connection.execute(sa.update(_transfer).where(this).values(copied=copied, last_key=key))
        progress.advance(len(page))


def _compare(source: Connection, target: Database, table: sa.Table, progress: _Progress) -> None:
    expected = _digest(source, table, progress)
    with target.snapshot() as connection:
        same = _digest(connection, table, progress) == expected
    if same:
        return
    with target.write() as connection:
        connection.execute(sa.delete(table))
        connection.execute(
            sa.update(_transfer)
            .where(_transfer.c.name == table.name)
            .values(copied=0, last_key=None)
        )
    raise MigrationError(
        f"The table {table.name} was written to meanwhile: stop every `clip-backend up`, `serve` "
        "and `worker`, and run the same command again"
    )


def _pages(
    connection: Connection, table: sa.Table, after: list[Any] | None = None
) -> Iterator[list[dict[str, Any]]]:
    key = list(table.primary_key)
    query = sa.select(table).order_by(*key)
    if after is not None:
        last = [sa.literal(value, column.type) for value, column in zip(after, key, strict=True)]
        query = query.where(sa.tuple_(*key) > sa.tuple_(*last))
    result = connection.execution_options(yield_per=CHUNK).execute(query)
    for page in result.mappings().partitions():
        yield [dict(row) for row in page]


def _digest(connection: Connection, table: sa.Table, progress: _Progress) -> tuple[int, int]:
    """Return the number of rows and the sum of their digests, which has no order.

    The two engines order text differently.
    """
    count = total = 0
    for page in _pages(connection, table):
        for row in without_owner(table, page):
            canonical = json.dumps(row, sort_keys=True, default=_hex).encode()
            total += int.from_bytes(sha256(canonical).digest(), "big")
        count += len(page)
        progress.advance(len(page))
    return count, total % _DIGEST_SIZE


def _hex(value: bytes) -> str:
    return bytes(value).hex()
