"""The durable records of runs, in SQL. A transition is stored here before anything is done about it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from drivetrain_pipelines.errors import InputError
from sqlalchemy import JSON, Engine, create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from drivetrain.runs.states import Ended, State, from_record, to_record


class _Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON}


class _Run(_Base):
    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(index=True)
    created: Mapped[float]
    session: Mapped[str]
    state: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any]]


class _Transition(_Base):
    __tablename__ = "transitions"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(index=True)
    time: Mapped[float]
    event: Mapped[str]
    state: Mapped[dict[str, Any]]


@dataclass(frozen=True)
class RunRecord:
    """A run as stored.

    Attributes:
        session: the coordinator that looks after it.
        facts: what the run has found out: dataset, MLflow run, summary.
    """

    id: str
    fingerprint: str
    created: float
    session: str
    state: State
    facts: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do: it has ended, and its resources and its tracking are closed."""
        return isinstance(self.state, Ended) and bool(self.facts.get("released"))


class RunStore:
    """All runs of one home. Safe to use from several processes: SQLite in WAL mode, one short transaction a call.

    Args:
        url: SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            _use_wal(self._engine)
        _Base.metadata.create_all(self._engine)

    def create(self, run_id: str, fingerprint: str, state: State, **facts: Any) -> None:
        """A new run, with what is known of it from the start."""
        with Session(self._engine) as session, session.begin():
            session.add(
                _Run(
                    id=run_id,
                    fingerprint=fingerprint,
                    created=time.time(),
                    session="",
                    state=to_record(state),
                    facts=facts,
                )
            )

    def get(self, run_id: str) -> RunRecord:
        """One run; a unique prefix of its id will do.

        Raises:
            InputError: there is no such run, or several.
        """
        with Session(self._engine) as session:
            rows = session.scalars(select(_Run).where(_Run.id.startswith(run_id, autoescape=True))).all()
            exact = [row for row in rows if row.id == run_id] or rows
            if len(exact) == 1:
                return _record(exact[0])
        ids = [record.id for record in self.runs()]
        allowed = ", ".join([row.id for row in rows] or ids[:10]) or "no run yet"
        raise InputError("RUN", repr(run_id), allowed)

    def runs(self) -> list[RunRecord]:
        """All runs, newest first."""
        with Session(self._engine) as session:
            return [_record(row) for row in session.scalars(select(_Run).order_by(_Run.created.desc()))]

    def claim(self, run_id: str, session_id: str) -> None:
        """Note which coordinator looks after a run from now on."""
        with Session(self._engine) as session, session.begin():
            session.get_one(_Run, run_id).session = session_id

    def save(self, run_id: str, state: State, why: str) -> None:
        """Store a transition, with the event that caused it."""
        record = to_record(state)
        with Session(self._engine) as session, session.begin():
            session.get_one(_Run, run_id).state = record
            session.add(_Transition(run_id=run_id, time=time.time(), event=why, state=record))

    def learn(self, run_id: str, **facts: Any) -> None:
        """Add to what is known of a run."""
        with Session(self._engine) as session, session.begin():
            row = session.get_one(_Run, run_id)
            row.facts = {**row.facts, **facts}

    def history(self, run_id: str) -> list[tuple[float, str, State]]:
        """Every transition of a run: when, on which event, to which state."""
        query = select(_Transition).where(_Transition.run_id == run_id).order_by(_Transition.id)
        with Session(self._engine) as session:
            return [(row.time, row.event, from_record(row.state)) for row in session.scalars(query)]


def _record(row: _Run) -> RunRecord:
    return RunRecord(row.id, row.fingerprint, row.created, row.session, from_record(row.state), row.facts)


def _use_wal(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.close()
