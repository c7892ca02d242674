"""Runs and their transitions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("fingerprint", sa.String, nullable=False, index=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("session", sa.String, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
    )
    op.create_table(
        "transitions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.String, nullable=False, index=True),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
    )
