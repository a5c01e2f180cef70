"""What was known of each published version, in numbers: it outlives the version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from backend.store.schema import Database, history


@dataclass(frozen=True)
class Figures:
    """What a version's report said of one control; None where it said nothing.

    `accuracy` is out of fold; `pool_accuracy` is the estimate of the open tasks with both ends of
    its 95 % interval; of `shown` predictions that people have seen until then they kept `kept`.
    """

    labels: int | None = None
    accuracy: float | None = None
    pool_accuracy: tuple[float, float, float] | None = None
    shown: int | None = None
    kept: int | None = None


@dataclass(frozen=True)
class Entry:
    """A version, stored or long gone; `figures` by control."""

    number: int
    name: str
    created_at: float
    figures: Mapping[str, Figures]


class History:
    """The table of what was known of versions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, project_id: int) -> list[Entry]:
        """Return a project's versions, oldest first."""
        query = (
            sa.select(history.c.number, history.c.name, history.c.created_at, history.c.figures)
            .where(history.c.project_id == project_id)
            .order_by(history.c.number)
        )
        with self._database.read() as connection:
            return [
                Entry(
                    row.number,
                    row.name,
                    row.created_at,
                    {name: _from_json(figures) for name, figures in row.figures.items()},
                )
                for row in connection.execute(query)
            ]

    def forget(self, project_id: int) -> None:
        """Drop the history of a project."""
        with self._database.write() as connection:
            connection.execute(sa.delete(history).where(history.c.project_id == project_id))


def enter(
    connection: Connection,
    *,
    project_id: int,
    number: int,
    name: str,
    created_at: float,
    report: Mapping[str, Mapping[str, Any]],
) -> None:
    """Note a version with what its report says, in the transaction that publishes it."""
    connection.execute(
        sa.insert(history).values(
            project_id=project_id,
            number=number,
            name=name,
            created_at=created_at,
            figures=_to_json(report),
        )
    )


def correct(
    connection: Connection, project_id: int, number: int, report: Mapping[str, Mapping[str, Any]]
) -> None:
    """Bring what is noted of a version up to its report."""
    connection.execute(
        sa.update(history)
        .where(history.c.project_id == project_id, history.c.number == number)
        .values(figures=_to_json(report))
    )


def _to_json(report: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: asdict(_figures(of_control)) for name, of_control in report.items()}


def _figures(report: Mapping[str, Any]) -> Figures:
    pool, acceptance = report.get("pool_accuracy") or {}, report.get("acceptance") or {}
    interval = tuple(pool[name] for name in ("value", "low", "high") if name in pool)
    return Figures(
        labels=report.get("labels"),
        accuracy=(report.get("out_of_fold") or {}).get("top1"),
        # Whole, or not at all: no figure of the page is worth a version that cannot be published.
        pool_accuracy=interval if len(interval) == 3 else None,
        shown=acceptance.get("shown"),
        kept=acceptance.get("kept"),
    )


def _from_json(figures: Mapping[str, Any]) -> Figures:
    pool = figures["pool_accuracy"]
    return Figures(**{**figures, "pool_accuracy": tuple(pool) if pool else None})
