"""The states of a run with their data, and the allowed transitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_workers.protocol.reasons import Reason

from drivetrain.scheduling.model import Placement


@dataclass(frozen=True)
class Progress:
    """Progress of a run; carried through all states.

    Attributes:
        generation: number of the newest generation of ranks; 0 before the first.
        step: newest optimizer step.
        committed_step: step of the newest checkpoint.
        failures: number of consecutive failures by reason, without a step beyond ``failed_at_step``.
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
    """The allocation of a gang.

    Attributes:
        placement: ranks by node.
        since: when it was granted, in seconds since the epoch.
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
        """Name of the state, as shown and stored."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Allocated(State):
    """Base of the states in which the run has an allocation."""

    dataset: str
    allocation: Allocation


@dataclass(frozen=True)
class Queued(State):
    """Accepted, not started."""


@dataclass(frozen=True)
class Preparing(State):
    """The dataset is being prepared, or an existing one is being located."""


@dataclass(frozen=True)
class Ready(State):
    """Waiting for an allocation: the first one, or another one after its release.

    Attributes:
        why: reason for the release of the previous allocation.
        lost: the previous placement if one of its nodes was lost; its other nodes keep checkpoint copies in memory.
    """

    dataset: str
    why: str = ""
    lost: Placement = ()


@dataclass(frozen=True)
class Placing(Allocated):
    """Waiting for the agents of the gang to start."""


@dataclass(frozen=True)
class Starting(Allocated):
    """Agents start; a generation of ranks is forked, joins the process group and loads its state."""


@dataclass(frozen=True)
class Training(Allocated):
    """Ranks run optimizer steps."""


@dataclass(frozen=True)
class Waiting(Allocated):
    """Waiting for a retry after repeated failures, until ``not_before`` (seconds since the epoch)."""

    not_before: float


@dataclass(frozen=True)
class Stopping(Allocated):
    """The ranks were asked to save and end.

    Attributes:
        yields_for: reason for the preemption, if the run is to be requeued.
        reason, detail: why the run is to end, otherwise.
        deadline: when it ends without the ranks, in seconds since the epoch; None until the first tick.
    """

    yields_for: str = ""
    reason: Reason = Reason.CANCELLED
    detail: str = ""
    deadline: float | None = None


@dataclass(frozen=True)
class Finishing(Allocated):
    """Training is complete; sample, plots and tracking are being completed."""


@dataclass(frozen=True)
class Ended(State):
    """The final state, unless a user resumes the run."""

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
    Ended: (),  # a user's resume restarts the run as Queued
}

_BY_PHASE = {state.__name__.lower(): state for state in TRANSITIONS}
_STORED_KEYS = {"allocation": "place"}  # records keep the name of their first version


def to_record(state: State) -> JsonObject:
    """Convert a state to its JSON record."""
    fields = {_STORED_KEYS.get(name, name): value for name, value in dataclasses.asdict(state).items()}
    return {"phase": state.phase, **fields}


def from_record(record: JsonObject) -> State:
    """Load a state from its JSON record; unknown keys, from a newer version, are ignored."""
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
