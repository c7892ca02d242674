"""The durable records of runs, in SQL. A transition is stored here before its actions are performed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from drivetrain_pipelines.errors import InputError
from sqlalchemy import Executable, Select, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session
from tenacity import RetryCallState, retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from drivetrain.database.engine import READS, open_database
from drivetrain.database.tables import Counter, Run, Transition, Usage
from drivetrain.errors import NotFoundError, StoreUnavailableError
from drivetrain.runs.counters import counter_increments
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.states import Ended, State, from_record, to_record

TransitionRecord = tuple[float, str, State]  # time, event, new state
_PAGE = 500  # rows per query when iterating over many
_MAX_SHOWN = 10  # ids in the message about an ambiguous prefix
_SUGGESTIONS = 50  # ids that an error about an unknown run can suggest
_LAST_CHARACTER = chr(0x10FFFF)  # sorts after every character of an id
_ENDED = Ended.__name__.lower()


def _give_up(state: RetryCallState) -> NoReturn:
    error = state.outcome.exception() if state.outcome else None
    raise StoreUnavailableError(" ".join(str(error).split())[:300]) from error


# A restarted or locked database becomes available again; runs must survive that.
_with_retries = retry(
    retry=retry_if_exception_type(OperationalError),
    wait=wait_random_exponential(0.1, 5.0),
    stop=stop_after_delay(300.0),
    retry_error_callback=_give_up,
)


@dataclass(frozen=True)
class RunRecord:
    """A run as stored.

    Attributes:
        session: the coordinator that manages it.
        facts: dataset, MLflow run, summary and others.
    """

    id: str
    fingerprint: str
    created: float
    session: str
    state: State
    facts: RunFacts
    user: str = ""

    @property
    def ended(self) -> bool:
        """Whether the run has ended and released its resources and its tracking run."""
        return isinstance(self.state, Ended) and self.facts.released


class RunStore:
    """All runs of one home. Safe for use by several processes: each call is one short transaction.

    Args:
        url: see `open_database`.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        self._reading = self._engine.execution_options(**{READS: True})

    @_with_retries
    def create(
        self, run_id: str, fingerprint: str, state: State, user: str = "", key: str | None = None, **facts: Any
    ) -> bool:
        """Create a run with initial facts; return False if its user already has a run with this key."""
        row = Run(
            id=run_id,
            fingerprint=fingerprint,
            created=time.time(),
            session="",
            state=to_record(state),
            facts=_storable(RunFacts().updated(**facts).to_json()),
            user=user,
            idempotency_key=key,
        )
        _derive_columns(row)
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError:
            if key is None or self.by_key(user, key) is None:
                raise
            return False
        return True

    @_with_retries
    def by_key(self, user: str, key: str) -> RunRecord | None:
        """Return the run that a user submitted with an idempotency key."""
        query = select(Run).where(Run.user == user, Run.idempotency_key == key)
        with Session(self._reading) as session:
            row = session.scalars(query).one_or_none()
            return _record(row) if row else None

    @_with_retries
    def get(self, run_id: str) -> RunRecord:
        """Return a run by its id or a unique prefix of its id.

        Raises:
            NotFoundError: there is no such run.
            InputError: several runs have this prefix.
        """
        with Session(self._reading) as session:
            if row := session.get(Run, run_id):
                return _record(row)
            alike = select(Run.id).where(Run.id >= run_id, Run.id < run_id + _LAST_CHARACTER).order_by(Run.id)
            found = session.scalars(alike.limit(_SUGGESTIONS)).all()
            if len(found) == 1:
                return _record(session.get_one(Run, found[0]))
            if not found:
                newest = session.scalars(_newest(select(Run.id)).limit(_SUGGESTIONS)).all()
                raise NotFoundError("run", run_id, newest)
        raise InputError("RUN", repr(run_id), ", ".join(found[:_MAX_SHOWN]), "Several runs begin with it.")

    @_with_retries
    def unended(self, *, session: str | None = None, fingerprint: str | None = None) -> list[RunRecord]:
        """Return the runs that have not ended, newest first.

        Args:
            session: only runs of this coordinator.
            fingerprint: only runs of exactly this job.
        """
        query = _where(select(Run), ended=False, session=session, fingerprint=fingerprint)
        with Session(self._reading) as reading:
            return [_record(row) for row in reading.scalars(_newest(query))]

    @_with_retries
    def page(
        self,
        limit: int = 50,
        before: str | None = None,
        *,
        user: str | None = None,
        phase: str | None = None,
        fingerprint: str | None = None,
        ended: bool | None = None,
    ) -> list[RunRecord]:
        """Return a page of runs, newest first.

        Args:
            limit: maximum number of runs.
            before: id of the last run of the previous page; None starts with the newest run.
            user, phase, fingerprint, ended: only runs with this value; None allows all.

        Raises:
            InputError: the run ``before`` does not exist.
        """
        query = _where(select(Run), user=user, phase=phase, fingerprint=fingerprint, ended=ended)
        with Session(self._reading) as session:
            if before is not None:
                last = session.get(Run, before)
                if last is None:
                    raise InputError("before", repr(before), "the id of a run")
                query = query.where(tuple_(Run.created, Run.id) < (last.created, last.id))
            return [_record(row) for row in session.scalars(_newest(query).limit(limit))]

    def iterate(self, **wanted: Any) -> Iterator[RunRecord]:
        """Yield runs, newest first, one page per query. Args: the filters of `page`."""
        before: str | None = None
        while records := self.page(_PAGE, before, **wanted):
            yield from records
            before = records[-1].id

    @_with_retries
    def datasets(self) -> set[str]:
        """Return the locations of all datasets that a run refers to."""
        query = select(Run.dataset).where(Run.dataset.is_not(None)).distinct()
        with Session(self._reading) as session:
            return {location for location in session.scalars(query) if location}

    def delete(self, run_id: str) -> None:
        """Delete a run that never started."""
        with Session(self._engine) as session, session.begin():
            session.delete(session.get_one(Run, run_id))

    @_with_retries
    def claim(self, run_id: str, session_id: str) -> None:
        """Assign a run to a coordinator."""
        with Session(self._engine) as session, session.begin():
            session.get_one(Run, run_id, with_for_update=True).session = session_id

    @_with_retries
    def save(self, run_id: str, state: State, why: str) -> None:
        """Store a transition, with the event that caused it."""
        record = to_record(state)
        with Session(self._engine) as session, session.begin():
            row = session.get_one(Run, run_id, with_for_update=True)
            for name, label in counter_increments(from_record(row.state), state):
                session.execute(self._increment(name, label))
            row.state = record
            _derive_columns(row)
            session.add(Transition(run_id=run_id, time=time.time(), event=why, state=record))

    @_with_retries
    def update_facts(self, run_id: str, **changes: Any) -> None:
        """Change some of the `RunFacts` of a run."""
        known = RunFacts().updated(**changes)  # unknown names are rejected
        stored = {name: getattr(known, name) for name in changes}
        with Session(self._engine) as session, session.begin():
            row = session.get_one(Run, run_id, with_for_update=True)
            row.facts = {**row.facts, **_storable(stored)}
            _derive_columns(row)

    def history(self, run_id: str) -> list[TransitionRecord]:
        """Return every transition of a run, in order."""
        return [transition for _, transition in self.history_after(run_id, 0)]

    @_with_retries
    def history_after(self, run_id: str, number: int) -> list[tuple[int, TransitionRecord]]:
        """Return the transitions of a run whose numbers are above the given one, in order, with their numbers.

        The transitions of one run are stored one after another: a later one has a higher number.
        """
        columns = select(Transition.id, Transition.time, Transition.event, Transition.state)
        query = columns.where(Transition.run_id == run_id, Transition.id > number).order_by(Transition.id)
        with Session(self._reading) as session:
            return [(each, (at, why, from_record(state))) for each, at, why, state in session.execute(query)]

    @_with_retries
    def counters(self, name: str) -> dict[str, int]:
        """Return a counter of `drivetrain.runs.counters` by its labels."""
        with Session(self._reading) as session:
            rows = session.execute(select(Counter.label, Counter.value).where(Counter.name == name))
            return {row.label: row.value for row in rows}

    @_with_retries
    def usage(self) -> tuple[dict[str, float], float]:
        """Return the shares by user as stored by `save_usage`, and the time of their measurement."""
        with Session(self._reading) as session:
            rows = session.scalars(select(Usage)).all()
        return {row.user: row.share for row in rows}, max((row.time for row in rows), default=time.time())

    @_with_retries
    def save_usage(self, shares: Mapping[str, float], now: float) -> None:
        """Store the users' recent shares of the cluster."""
        with Session(self._engine) as session, session.begin():
            for user, share in shares.items():
                session.merge(Usage(user=user, share=share, time=now))

    def _increment(self, name: str, label: str) -> Executable:
        """Return the statement that increments a counter, or creates it."""
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        insert = dialect.insert(Counter).values(name=name, label=label, value=1)
        more = {"value": Counter.value + 1}
        upsert: Executable = insert.on_conflict_do_update(index_elements=["name", "label"], set_=more)
        return upsert


@_with_retries
def last_changes(store: RunStore, run_ids: Sequence[str]) -> dict[str, float]:
    """Return when the phase of each run changed last; a run whose phase has never changed is left out."""
    newest = select(Transition.run_id, func.max(Transition.time)).where(Transition.run_id.in_(run_ids))
    with Session(store._reading) as session:
        return {row[0]: row[1] for row in session.execute(newest.group_by(Transition.run_id))}


def _where(query: Select[Any], **values: Any) -> Select[Any]:
    """Restrict a query to runs that have the given values; None allows all."""
    return query.filter_by(**{name: value for name, value in values.items() if value is not None})


def _newest(query: Select[Any]) -> Select[Any]:
    """Order by age, newest first, then by id for runs submitted at the same time."""
    return query.order_by(Run.created.desc(), Run.id.desc())


def _derive_columns(row: Run) -> None:
    """Fill the columns used in queries."""
    row.phase = row.state["phase"]
    row.ended = row.phase == _ENDED and bool(row.facts.get("released"))
    row.dataset = row.facts.get("dataset")


def _record(row: Run) -> RunRecord:
    return RunRecord(
        row.id,
        row.fingerprint,
        row.created,
        row.session,
        from_record(row.state),
        RunFacts.from_json(row.facts),
        row.user,
    )


def _storable(value: Any) -> Any:
    """Replace NaN and infinity by None: JSON lacks them, and PostgreSQL rejects them."""
    if isinstance(value, dict):
        return {key: _storable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
