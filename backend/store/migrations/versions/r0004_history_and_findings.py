"""What was known of each version in numbers, and what was found out for people to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# Reports list suspected labels by the thousand.
_AT_ONCE = 100


def upgrade() -> None:
    """Add the tables; the history begins with the versions that are still stored."""
    history = op.create_table(
        "history",
        sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "findings",
        sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    versions = sa.table(
        "versions",
        sa.column("project_id", sa.Integer),
        sa.column("number", sa.Integer),
        sa.column("name", sa.Text),
        sa.column("report", sa.JSON),
        sa.column("created_at", sa.Float),
    )
    connection = op.get_bind()
    keys = connection.execute(sa.select(versions.c.project_id, versions.c.number)).all()
    for start in range(0, len(keys), _AT_ONCE):
        some = sa.tuple_(versions.c.project_id, versions.c.number).in_(
            [tuple(key) for key in keys[start : start + _AT_ONCE]]
        )
        connection.execute(
            sa.insert(history),
            [
                {
                    "project_id": row.project_id,
                    "number": row.number,
                    "name": row.name,
                    "figures": {name: _figures(each) for name, each in row.report.items()},
                    "created_at": row.created_at,
                }
                for row in connection.execute(sa.select(versions).where(some)).all()
            ],
        )


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    pool = report.get("pool_accuracy") or {}
    acceptance = report.get("acceptance") or {}
    return {
        "labels": report.get("labels"),
        "accuracy": (report.get("out_of_fold") or {}).get("top1"),
        "pool_accuracy": [pool[name] for name in ("value", "low", "high")] if pool else None,
        "shown": acceptance.get("shown"),
        "kept": acceptance.get("kept"),
    }
