"""All tables. A change here needs a migration in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Of all tables."""

    type_annotation_map = {dict[str, Any]: JSON}


class Run(Base):
    """A run, as it is now.

    Attributes:
        session: the coordinator that looks after it.
        idempotency_key: with which its user has submitted it, so that doing so twice makes one run.
    """

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("user", "idempotency_key", name="one_run_per_key"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(index=True)
    created: Mapped[float]
    session: Mapped[str]
    state: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any]]
    user: Mapped[str] = mapped_column(index=True, server_default="")
    idempotency_key: Mapped[str | None]


class Transition(Base):
    """A change of a run's state; kept for ever."""

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
