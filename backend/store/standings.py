"""How the stored versions of a project compare, without what makes their reports large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from backend.store.schema import Database, versions


@dataclass(frozen=True)
class ControlStanding:
    """What a version knows of one control, None where it does not; `accuracy` is out of fold."""

    control: str
    labels: int | None
    accuracy: float | None


@dataclass(frozen=True)
class Standing:
    """One stored version; `created_at` is Unix time."""

    number: int
    name: str
    created_at: float
    controls: tuple[ControlStanding, ...]


class Standings:
    """What the table of versions says of each, in numbers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, project_id: int, limit: int) -> list[Standing]:
        """Return a project's newest versions, the newest first.

        The database takes the figures out of the reports, which list suspected labels by the
        thousand.
        """
        newest = (
            sa.select(versions.c.number, versions.c.name, versions.c.created_at, versions.c.report)
            .where(versions.c.project_id == project_id)
            .order_by(versions.c.number.desc())
            .limit(limit)
            .subquery()
        )
        of_control = sa.func.json_each(newest.c.report).table_valued(
            sa.column("key", sa.Text), sa.column("value", sa.JSON)
        )
        query = (
            sa.select(
                newest.c.number,
                newest.c.name,
                newest.c.created_at,
                of_control.c.key,
                of_control.c.value["labels"].as_integer(),
                of_control.c.value[("out_of_fold", "top1")].as_float(),
            )
            .select_from(newest)
            .outerjoin(of_control, sa.true())
            .order_by(newest.c.number.desc())
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Standing(number, name, created_at, tuple(_controls(of_version)))
            for (number, name, created_at), of_version in groupby(rows, key=lambda row: row[:3])
        ]


def _controls(rows: Iterable[Any]) -> Iterator[ControlStanding]:
    for _, _, _, control, labels, accuracy in rows:
        # A version whose report is empty has one row, of no control.
        if control is not None:
            yield ControlStanding(control, labels, accuracy)
