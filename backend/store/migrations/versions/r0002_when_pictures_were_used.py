"""When pictures and encoders were last used, so that what nobody uses can go."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; the pictures that are there count as used today."""
    # A default for the rows that are there costs nothing; to set a column writes a million rows.
    today = sa.text(repr(time.time()))
    op.add_column("images", sa.Column("used_at", sa.Float, server_default=today, nullable=False))
    if op.get_context().dialect.name == "postgresql":
        # SQLite would copy the table for that; new rows always bring a value.
        op.alter_column("images", "used_at", server_default=None)
    op.create_index("ix_images_content", "images", ["content"])
    op.create_table(
        "encoders",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("used_at", sa.Float, nullable=False),
    )
    op.add_column("projects", sa.Column("marked_at", sa.Float))
    op.add_column("projects", sa.Column("marking", sa.JSON))
