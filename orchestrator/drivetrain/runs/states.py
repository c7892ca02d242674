"""The states of a run, each carrying its own data, and which may follow which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drivetrain_pipelines.storage.checksums import JsonObject
from drivetrain_workers.protocol.reasons import Reason

from drivetrain.scheduling.model import Placement


@dataclass(frozen=True)
class Progress:
    """How far a run is; carried through all states.

    Attributes:
        generation: number of the newest generation of ranks, 0 before the first.
        step: newest optimizer step seen.
        committed_step: step of the newest checkpoint seen.
        failures: how many in a row, by reason, without a step beyond ``failed_at_step``.
        failed_at_step: step at the newest failure.
        restarts: generations that replaced a failed one.
    """

    generation: int = 0
    step: int = 0
    committed_step: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    failed_at_step: int = -1
    restarts: int = 0


@dataclass(frozen=True)
class Allocation:
    """Where a gang is.

    Attributes:
        placement: ranks by node.
        since: when it was given, in seconds since the epoch.
        level: see `drivetrain.scheduling.model.AllocatedGang`.
    """

    placement: Placement = ()
    since: float = 0.0
    level: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{ranks} on node {node[:12]}" for node, ranks in self.placement)


@dataclass(frozen=True)
class State:
    """Base of all states."""

    progress: Progress = field(default=Progress(), kw_only=True)

    @property
    def phase(self) -> str:
        """The state's name for people and records."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Allocated(State):
    """Base of the states in which the run has a place on the cluster."""

    dataset: str
    allocation: Allocation


@dataclass(frozen=True)
class Queued(State):
    """Accepted, not yet begun."""


@dataclass(frozen=True)
class Preparing(State):
    """Raw data is being turned into a dataset, or found to be one already."""


@dataclass(frozen=True)
class Ready(State):
    """Waiting for a place: at first, or after it had to give one back.

    Attributes:
        why: it had to.
        lost: the place of which a node is gone; on its other nodes the gang has left copies in memory.
    """

    dataset: str
    why: str = ""
    lost: Placement = ()


@dataclass(frozen=True)
class Placing(Allocated):
    """Waiting for the gang's agents to be there."""


@dataclass(frozen=True)
class Starting(Allocated):
    """Agents warm up; a generation of ranks is forked, joins and loads."""


@dataclass(frozen=True)
class Training(Allocated):
    """Optimizer steps are being made."""


@dataclass(frozen=True)
class Waiting(Allocated):
    """After repeated failures: until ``not_before`` (seconds since the epoch)."""

    not_before: float


@dataclass(frozen=True)
class Stopping(Allocated):
    """The ranks were asked to save and end.

    Attributes:
        yields_for: why, where the run is to go on elsewhere or later.
        reason, detail: why, where it is to end.
    """

    yields_for: str = ""
    reason: Reason = Reason.CANCELLED
    detail: str = ""


@dataclass(frozen=True)
class Finishing(Allocated):
    """Training is done; sample, pictures and tracking are being completed."""


@dataclass(frozen=True)
class Ended(State):
    """Nothing more will happen, unless a user resumes the run."""

    reason: Reason
    detail: str = ""


TRANSITIONS: dict[type[State], tuple[type[State], ...]] = {
    Queued: (Preparing, Ended),
    Preparing: (Ready, Ended),
    Ready: (Placing, Ended),
    Placing: (Ready, Starting, Ended),
    Starting: (Ready, Placing, Training, Waiting, Stopping, Finishing, Ended),
    Training: (Ready, Placing, Starting, Waiting, Stopping, Finishing, Ended),
    Waiting: (Ready, Placing, Starting, Ended),
    Stopping: (Ready, Finishing, Ended),
    Finishing: (Ended,),
    Ended: (),  # a user's resume begins the run anew, as Queued
}

_BY_PHASE = {state.__name__.lower(): state for state in TRANSITIONS}
_STORED_KEYS = {"allocation": "place"}  # records keep the name of their first version


def to_record(state: State) -> JsonObject:
    """JSON form of a state."""
    fields = {_STORED_KEYS.get(name, name): value for name, value in dataclasses.asdict(state).items()}
    return {"phase": state.phase, **fields}


def from_record(record: JsonObject) -> State:
    """Inverse of `to_record`; lenient: unknown keys, of a newer version, are skipped."""
    kind = _BY_PHASE[record["phase"]]
    known = {f.name for f in dataclasses.fields(kind)}
    fields = {k: v for k, v in record.items() if k in known}
    progress_keys = {f.name for f in dataclasses.fields(Progress)}
    fields["progress"] = Progress(**{k: v for k, v in record.get("progress", {}).items() if k in progress_keys})
    if allocation := record.get("place"):
        placement = _placement(allocation["placement"])
        fields["allocation"] = Allocation(placement, allocation["since"], allocation["level"])
    if "lost" in fields:
        fields["lost"] = _placement(fields["lost"])
    if "reason" in fields:
        fields["reason"] = Reason(fields["reason"])
    return kind(**fields)


def _placement(record: list[list[Any]]) -> Placement:
    return tuple((node, ranks) for node, ranks in record)
