"""Columns and indexes for queries of runs by phase, end and dataset; counters of transitions."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa
from alembic import op
from drivetrain_pipelines.storage.json_files import JsonObject

revision, down_revision = "0003", "0002"

_NEWEST_OF = ("user", "phase", "fingerprint")


def upgrade() -> None:
    """Add columns, indexes and counters, and fill them from existing runs."""
    _add_columns()
    _add_indexes()
    op.create_table(
        "counters",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("label", sa.String, primary_key=True),
        sa.Column("value", sa.Integer, nullable=False),
    )
    _count()


def _add_columns() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("phase", sa.String, nullable=False, server_default=""))
        runs.add_column(sa.Column("ended", sa.Boolean, nullable=False, server_default=sa.false()))
        runs.add_column(sa.Column("dataset", sa.String, nullable=True))
    table = sa.table("runs", *(sa.column(name) for name in ("phase", "ended", "dataset")),
                     sa.column("state", sa.JSON), sa.column("facts", sa.JSON))  # fmt: skip
    phase, facts = table.c.state["phase"].as_string(), table.c.facts
    released = sa.func.coalesce(facts["released"].as_boolean(), sa.false())
    columns = {"phase": phase, "ended": sa.and_(phase == "ended", released), "dataset": facts["dataset"].as_string()}
    op.execute(table.update().values(columns))


def _add_indexes() -> None:
    if op.get_bind().dialect.name == "postgresql":  # SQLite always compares by bytes
        op.alter_column("runs", "id", type_=sa.String(collation="C"))
    op.drop_index("ix_runs_user", "runs")
    op.drop_index("ix_runs_fingerprint", "runs")
    op.create_index("ix_runs_dataset", "runs", ["dataset"])
    op.create_index("ix_runs_newest", "runs", ["created", "id"])
    op.create_index("ix_runs_newest_unended", "runs", ["ended", "created", "id"])
    for name in _NEWEST_OF:
        op.create_index(f"ix_runs_newest_of_{name}", "runs", [name, "created", "id"])


def _count() -> None:
    """Count the existing transitions; later ones are counted when they are stored."""
    table = sa.table("transitions", sa.column("id"), sa.column("run_id"), sa.column("state", sa.JSON))
    query = sa.select(table.c.run_id, table.c.state).order_by(table.c.run_id, table.c.id)
    found: Counter[tuple[str, str]] = Counter()
    of_run: str | None = None
    before: JsonObject = {}
    with op.get_bind().execute(query.execution_options(yield_per=1000)) as rows:
        for run_id, state in rows:
            after = state.get("progress", {})
            found.update(_counted(before if run_id == of_run else {}, state, after))
            of_run, before = run_id, after
    counters = sa.table("counters", *(sa.column(name) for name in ("name", "label", "value")))
    op.bulk_insert(counters, [{"name": n, "label": label, "value": value} for (n, label), value in found.items()])


def _counted(before: JsonObject, state: JsonObject, after: JsonObject) -> list[tuple[str, str]]:
    found = [("admissions", "")] if state["phase"] == "placing" else []
    if state["phase"] == "ended":
        found.append(("ends", state["reason"]))
    if after.get("restarts", 0) > before.get("restarts", 0):
        known, failures = before.get("failures", {}), after.get("failures", {})
        grown = [reason for reason, count in failures.items() if count > known.get(reason, 0)]
        found.append(("recoveries", next(iter(grown or failures), "unknown")))
    return found
