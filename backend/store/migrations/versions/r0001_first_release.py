"""The tables of version 0.1.0, which made them without a revision."""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Do nothing: databases begin with the tables of the release that makes them."""
