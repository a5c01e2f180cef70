"""Of several tasks when they changed last, where it was of one."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Forget how far tasks are mirrored: those of every project are mirrored anew."""
    op.execute("UPDATE projects SET mirrored = NULL")
