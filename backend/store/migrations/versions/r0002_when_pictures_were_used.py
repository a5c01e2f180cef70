"""When pictures and encoders were last used, so that what nobody uses can go."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; the pictures that are there count as used today."""
    op.add_column("images", sa.Column("used_at", sa.Float))
    used_at = sa.column("used_at", sa.Float)
    op.execute(sa.update(sa.table("images", used_at)).values({used_at: time.time()}))
    with op.batch_alter_table("images") as images:
        images.alter_column("used_at", existing_type=sa.Float, nullable=False)
    op.create_index("ix_images_content", "images", ["content"])
    op.create_table(
        "encoders",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("used_at", sa.Float, nullable=False),
    )
    op.add_column("projects", sa.Column("marked_at", sa.Float))
    op.add_column("projects", sa.Column("marking", sa.JSON))
