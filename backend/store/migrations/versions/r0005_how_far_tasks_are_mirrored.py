"""Which change in Label Studio the mirror of a project's tasks has come to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column; the tasks of every project are mirrored anew."""
    op.add_column("projects", sa.Column("mirrored", sa.JSON))
