"""The durable records of runs, in SQL. A transition is stored here before anything is done about it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drivetrain_pipelines.errors import InputError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from drivetrain.database.engine import READS, open_database
from drivetrain.database.tables import Run, Transition, Usage
from drivetrain.runs.states import Ended, State, from_record, to_record

# A database that is restarted, or locked, comes back; a run must not end for that.
_patiently = retry(
    retry=retry_if_exception_type(OperationalError),
    wait=wait_random_exponential(0.1, 5.0),
    stop=stop_after_delay(300.0),
    reraise=True,
)


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
    user: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do: it has ended, and its resources and its tracking are closed."""
        return isinstance(self.state, Ended) and bool(self.facts.get("released"))


class RunStore:
    """All runs of one home. Safe to use from several processes: one short transaction a call.

    Args:
        url: see `open_database`.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        self._reading = self._engine.execution_options(**{READS: True})

    @_patiently
    def create(
        self, run_id: str, fingerprint: str, state: State, user: str = "", key: str | None = None, **facts: Any
    ) -> bool:
        """A new run, with what is known of it from the start; False when its user has one with that key already."""
        row = Run(
            id=run_id,
            fingerprint=fingerprint,
            created=time.time(),
            session="",
            state=to_record(state),
            facts=facts,
            user=user,
            idempotency_key=key,
        )
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError:
            if key is None or self.by_key(user, key) is None:
                raise
            return False
        return True

    @_patiently
    def by_key(self, user: str, key: str) -> RunRecord | None:
        """The run that a user has submitted with an idempotency key."""
        query = select(Run).where(Run.user == user, Run.idempotency_key == key)
        with Session(self._reading) as session:
            row = session.scalars(query).one_or_none()
            return _record(row) if row else None

    @_patiently
    def get(self, run_id: str) -> RunRecord:
        """One run; a unique prefix of its id will do.

        Raises:
            InputError: there is no such run, or several.
        """
        with Session(self._reading) as session:
            rows = session.scalars(select(Run).where(Run.id.startswith(run_id, autoescape=True))).all()
            exact = [row for row in rows if row.id == run_id] or rows
            if len(exact) == 1:
                return _record(exact[0])
        ids = [record.id for record in self.runs()]
        allowed = ", ".join([row.id for row in rows] or ids[:10]) or "no run yet"
        raise InputError("RUN", repr(run_id), allowed)

    @_patiently
    def runs(self) -> list[RunRecord]:
        """All runs, newest first."""
        with Session(self._reading) as session:
            return [_record(row) for row in session.scalars(select(Run).order_by(Run.created.desc()))]

    def forget(self, run_id: str) -> None:
        """Remove a run that never began."""
        with Session(self._engine) as session, session.begin():
            session.delete(session.get_one(Run, run_id))

    @_patiently
    def claim(self, run_id: str, session_id: str) -> None:
        """Note which coordinator looks after a run from now on."""
        with Session(self._engine) as session, session.begin():
            session.get_one(Run, run_id, with_for_update=True).session = session_id

    @_patiently
    def save(self, run_id: str, state: State, why: str) -> None:
        """Store a transition, with the event that caused it."""
        record = to_record(state)
        with Session(self._engine) as session, session.begin():
            session.get_one(Run, run_id, with_for_update=True).state = record
            session.add(Transition(run_id=run_id, time=time.time(), event=why, state=record))

    @_patiently
    def learn(self, run_id: str, **facts: Any) -> None:
        """Add to what is known of a run."""
        with Session(self._engine) as session, session.begin():
            row = session.get_one(Run, run_id, with_for_update=True)
            row.facts = {**row.facts, **_storable(facts)}

    @_patiently
    def history(self, run_id: str) -> list[tuple[float, str, State]]:
        """Every transition of a run: when, on which event, to which state."""
        query = select(Transition).where(Transition.run_id == run_id).order_by(Transition.id)
        with Session(self._reading) as session:
            return [(row.time, row.event, from_record(row.state)) for row in session.scalars(query)]

    @_patiently
    def transitions_after(self, number: int, until: float) -> list[tuple[int, str, State]]:
        """Transitions of all runs with numbers above the given one, in order: number, run, state.

        Args:
            until: seconds since the epoch; a few seconds ago, since numbers are given before they are committed.
        """
        newer = select(Transition).where(Transition.id > number, Transition.time <= until)
        query = newer.order_by(Transition.id)
        with Session(self._reading) as session:
            return [(row.id, row.run_id, from_record(row.state)) for row in session.scalars(query)]

    @_patiently
    def usage(self) -> tuple[dict[str, float], float]:
        """What `remember_usage` has kept: shares by user, and when they were measured."""
        with Session(self._reading) as session:
            rows = session.scalars(select(Usage)).all()
        return {row.user: row.share for row in rows}, max((row.time for row in rows), default=time.time())

    @_patiently
    def remember_usage(self, shares: Mapping[str, float], now: float) -> None:
        """Keep the users' recent shares of the cluster."""
        with Session(self._engine) as session, session.begin():
            for user, share in shares.items():
                session.merge(Usage(user=user, share=share, time=now))


def _record(row: Run) -> RunRecord:
    return RunRecord(row.id, row.fingerprint, row.created, row.session, from_record(row.state), row.facts, row.user)


def _storable(value: Any) -> Any:
    """Facts without NaN and infinity, which JSON does not have, and PostgreSQL refuses."""
    if isinstance(value, dict):
        return {key: _storable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
