"""All tables. A change here needs a migration in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Index, String, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Byte-wise comparison, as in SQLite, puts all ids with one prefix into one range of the index.
RunId = String().with_variant(String(collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON}


class Run(Base):
    """The current state of a run.

    Attributes:
        session: the coordinator that manages it.
        idempotency_key: key of the submission; a second submission with this key creates no run.
        phase, ended, dataset: copies of values in ``state`` and ``facts``, for queries.
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
    """A change of a run's state; never deleted."""

    __tablename__ = "transitions"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(index=True)
    time: Mapped[float]
    event: Mapped[str]
    state: Mapped[dict[str, Any]]


class Token(Base):
    """A bearer token of the server; only its digest is stored.

    Attributes:
        role: see `drivetrain.server.access.Role`.
        expires: seconds since the epoch; None for no expiry.
    """

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    user: Mapped[str]
    role: Mapped[str]
    created: Mapped[float]
    expires: Mapped[float | None]


class Usage(Base):
    """A user's recent share of the cluster, measured by the scheduler at ``time``."""

    __tablename__ = "usage"
    user: Mapped[str] = mapped_column(primary_key=True)
    share: Mapped[float]
    time: Mapped[float]


class Counter(Base):
    """A counter over the runs of this home, see `drivetrain.runs.counters`."""

    __tablename__ = "counters"
    name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]
