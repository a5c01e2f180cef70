"""The tables of version 0.1.0, which made them without a revision."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables in an empty database."""
    op.create_table(
        "projects",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("label_config", sa.Text, nullable=False),
        sa.Column("extra_params", sa.JSON, nullable=False),
        sa.Column("connected", sa.Boolean, nullable=False),
        sa.Column("model_version", sa.Text),
        sa.Column("connection", sa.JSON),
        sa.Column("webhook_digest", sa.Text),
        sa.Column("webhook_at", sa.Float),
        sa.Column("watermark", sa.JSON),
        sa.Column("surplus", sa.JSON, nullable=False),
    )
    op.create_table(
        "tasks",
        sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("model_version", sa.Text),
        sa.Column("shown_until", sa.Float),
    )
    op.create_table(
        "images",
        sa.Column("source", sa.String(64), primary_key=True),
        sa.Column("content", sa.String(64)),
        sa.Column("error", sa.Text),
        sa.Column("retry_at", sa.Float),
    )
    op.create_table(
        "embeddings",
        sa.Column("encoder", sa.String(128), primary_key=True),
        sa.Column("content", sa.String(64), primary_key=True),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("encoder", sa.String(128), nullable=False),
        sa.Column("query_strategy", sa.Text, nullable=False),
        sa.Column("score", sa.Text, nullable=False),
        sa.Column("heads", sa.LargeBinary, nullable=False),
        sa.Column("annotations", sa.Integer, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("part", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("requested", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("first_at", sa.Float, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
    )
    op.create_index("ix_requests_due_at", "requests", ["due_at"])
