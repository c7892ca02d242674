"""Owners of runs, tokens of users, and their usage of the cluster."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Add the columns and tables."""
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("user", sa.String, nullable=False, server_default=""))
        runs.add_column(sa.Column("idempotency_key", sa.String, nullable=True))
        runs.create_index("ix_runs_user", ["user"])
        runs.create_unique_constraint("one_run_per_key", ["user", "idempotency_key"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("digest", sa.String, nullable=False, unique=True),
        sa.Column("user", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=True),
    )
    op.create_table(
        "usage",
        sa.Column("user", sa.String, primary_key=True),
        sa.Column("share", sa.Double, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
    )
