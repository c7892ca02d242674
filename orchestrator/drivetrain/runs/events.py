"""Events of a run, and the actions that follow."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from drivetrain_workers.protocol.reasons import Reason

from drivetrain.runs.states import Allocation


@dataclass(frozen=True)
class Event:
    """An observation about a run."""

    def __str__(self) -> str:
        """Return the event and its useful fields as text for users."""
        name = re.sub("(?<!^)(?=[A-Z])", " ", type(self).__name__).lower()
        shown = []
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) in (int, Reason):
                shown.append(f"{each.name} {value}")
            elif value and isinstance(value, str | Allocation):
                shown.append(" ".join(str(value).split()))
        words = ": ".join(filter(None, (name, ", ".join(shown))))
        return "".join(letter for letter in words if letter.isprintable())  # details may come from user code


@dataclass(frozen=True)
class Admitted(Event):
    """The run may start to prepare its data."""


@dataclass(frozen=True)
class Prepared(Event):
    """The dataset version at ``dataset`` exists."""

    dataset: str


@dataclass(frozen=True)
class AllocationGranted(Event):
    """The scheduler has granted an allocation to the gang."""

    allocation: Allocation


@dataclass(frozen=True)
class AllocationLost(Event):
    """A node of the allocation has left the cluster."""

    detail: str


@dataclass(frozen=True)
class AllocationUnusable(Event):
    """Agents repeatedly die on the allocated nodes right after their start."""

    detail: str


@dataclass(frozen=True)
class PreemptionRequested(Event):
    """The scheduler needs the allocation; the run saves and is requeued."""

    why: str


@dataclass(frozen=True)
class GangPlaced(Event):
    """All agents have started."""


@dataclass(frozen=True)
class Failed(Event):
    """The run cannot continue, in any phase."""

    reason: Reason
    detail: str


@dataclass(frozen=True)
class RanksReady(Event):
    """A generation has loaded its state and starts at ``step``."""

    generation: int
    step: int


@dataclass(frozen=True)
class Stepped(Event):
    """An optimizer step is done."""

    generation: int
    step: int


@dataclass(frozen=True)
class Committed(Event):
    """A checkpoint is complete."""

    generation: int
    step: int


@dataclass(frozen=True)
class RankLost(Event):
    """A rank process ended unexpectedly.

    Attributes:
        time: when the coordinator received the report, by its own clock, since node clocks differ.
    """

    generation: int
    reason: Reason
    detail: str
    time: float


@dataclass(frozen=True)
class AgentLost(Event):
    """An agent has died."""

    generation: int
    detail: str


@dataclass(frozen=True)
class RanksFinished(Event):
    """All ranks ended normally; ``complete`` if every step is done."""

    generation: int
    complete: bool


@dataclass(frozen=True)
class CancelRequested(Event):
    """A user has cancelled the run, or its budget is spent; it saves and ends."""

    reason: Reason = Reason.CANCELLED
    detail: str = ""


@dataclass(frozen=True)
class Concluded(Event):
    """The work after training is complete."""


@dataclass(frozen=True)
class Tick(Event):
    """Time passed."""

    now: float


@dataclass(frozen=True)
class Action:
    """An action to perform. Actions are idempotent, since a crash can repeat them."""


@dataclass(frozen=True)
class Prepare(Action):
    """Prepare the dataset."""


@dataclass(frozen=True)
class PlaceGang(Action):
    """Create a placement group and agents; replace agents that died."""

    dataset: str
    allocation: Allocation


@dataclass(frozen=True)
class ReleaseAllocation(Action):
    """End all agents, release the allocation if there is one, and request a new one.

    Attributes:
        keep_copies: keep the checkpoint copies in the memory of the nodes for the next allocation.
    """

    keep_copies: bool = False


@dataclass(frozen=True)
class Attach(Action):
    """Reconnect to the agents by name after a restart of the coordinator."""

    generation: int


@dataclass(frozen=True)
class StartGeneration(Action):
    """End all older ranks and fork this generation."""

    generation: int


@dataclass(frozen=True)
class StopRanks(Action):
    """End all ranks now."""


@dataclass(frozen=True)
class RequestStop(Action):
    """Request that the ranks save and end."""


@dataclass(frozen=True)
class Conclude(Action):
    """Generate the sample, complete the tracking."""

    dataset: str


@dataclass(frozen=True)
class Release(Action):
    """Release all resources and close the tracking run."""

    reason: Reason
    detail: str
