"""What was found out of a project for people to look at: of each kind the last, and only that.

Each is one small row, so that a page reads it at once however large the project is. Nothing
depends on them: what is lost is found out again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from backend.store.schema import Database, findings


class FindingKind(str, Enum):
    """The kinds of what is found out."""

    CONFUSION = "confusion"
    LABELS = "labels"
    LEFT_OUT = "left_out"
    QUEUE = "queue"
    MAP = "map"


@dataclass(frozen=True)
class Found:
    """What was found out of a version, and when (Unix time)."""

    model_version: str
    content: bytes
    created_at: float


class Findings:
    """The table of findings."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, project_id: int, kind: FindingKind) -> Found | None:
        """Return the last finding of a kind."""
        query = sa.select(
            findings.c.model_version, findings.c.content, findings.c.created_at
        ).where(findings.c.project_id == project_id, findings.c.kind == kind.value)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Found(*row)

    def model_version(self, project_id: int, kind: FindingKind) -> str | None:
        """Return which version the last finding of a kind is of, without reading it."""
        query = sa.select(findings.c.model_version).where(
            findings.c.project_id == project_id, findings.c.kind == kind.value
        )
        with self._database.read() as connection:
            found: str | None = connection.scalar(query)
            return found

    def keep(
        self,
        project_id: int,
        model_version: str,
        contents: Mapping[FindingKind, bytes],
        *,
        within: Connection | None = None,
    ) -> None:
        """Put findings in place of the last ones, in one transaction or one at hand (`within`)."""
        if not contents:
            return
        insert = self._database.insert(findings)
        upsert = insert.on_conflict_do_update(
            index_elements=["project_id", "kind"],
            set_={
                name: insert.excluded[name] for name in ("model_version", "content", "created_at")
            },
        )
        rows = [
            {
                "project_id": project_id,
                "kind": kind.value,
                "model_version": model_version,
                "content": content,
                "created_at": time.time(),
            }
            for kind, content in contents.items()
        ]
        with self._database.write() if within is None else nullcontext(within) as connection:
            connection.execute(upsert, rows)

    def forget(self, project_id: int) -> None:
        """Drop all findings of a project."""
        with self._database.write() as connection:
            connection.execute(sa.delete(findings).where(findings.c.project_id == project_id))
