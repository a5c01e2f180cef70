"""Which version somebody has rolled a project back to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; no project of an older release is pinned."""
    op.add_column("projects", sa.Column("pinned", sa.Text))
