"""All tables. A change here needs a migration in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Index, String, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# PostgreSQL compares by bytes then, as SQLite does: only so is every id with a prefix in one range of the index.
RunId = String().with_variant(String(collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Of all tables."""

    type_annotation_map = {dict[str, Any]: JSON}


class Run(Base):
    """A run, as it is now.

    Attributes:
        session: the coordinator that looks after it.
        idempotency_key: with which its user has submitted it, so that doing so twice makes one run.
        phase, ended, dataset: copies of what ``state`` and ``facts`` say, to be looked up by.
    """

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("user", "idempotency_key", name="one_run_per_key"),
        Index("ix_runs_newest", "created", "id"),
        Index("ix_runs_newest_of_user", "user", "created", "id"),
        Index("ix_runs_newest_of_phase", "phase", "created", "id"),
        Index("ix_runs_newest_of_fingerprint", "fingerprint", "created", "id"),
        Index("ix_runs_newest_unended", "ended", "created", "id"),
    )
    id: Mapped[str] = mapped_column(RunId, primary_key=True)
    fingerprint: Mapped[str]
    created: Mapped[float]
    session: Mapped[str]
    state: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any]]
    user: Mapped[str] = mapped_column(server_default="")
    idempotency_key: Mapped[str | None]
    phase: Mapped[str] = mapped_column(server_default="")
    ended: Mapped[bool] = mapped_column(server_default=false())
    dataset: Mapped[str | None] = mapped_column(index=True)


class Transition(Base):
    """A change of a run's state; never removed."""

    __tablename__ = "transitions"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(index=True)
    time: Mapped[float]
    event: Mapped[str]
    state: Mapped[dict[str, Any]]


class Token(Base):
    """A bearer token of the server; only its digest is known.

    Attributes:
        role: see `drivetrain.server.access.Role`.
        expires: seconds since the epoch, or never.
    """

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    user: Mapped[str]
    role: Mapped[str]
    created: Mapped[float]
    expires: Mapped[float | None]


class Usage(Base):
    """A user's recent share of the cluster, as the scheduler has measured it at ``time``."""

    __tablename__ = "usage"
    user: Mapped[str] = mapped_column(primary_key=True)
    share: Mapped[float]
    time: Mapped[float]


class Counter(Base):
    """How often something has happened to the runs of this home, see `drivetrain.runs.counters`."""

    __tablename__ = "counters"
    name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]
