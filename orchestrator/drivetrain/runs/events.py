"""What can happen to a run, and what can be done about it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from drivetrain_workers.protocol.reasons import Reason

from drivetrain.runs.states import Allocation


@dataclass(frozen=True)
class Event:
    """Something that was observed."""

    def __str__(self) -> str:
        """For people: what happened, and what they can use of what is known of it."""
        name = re.sub("(?<!^)(?=[A-Z])", " ", type(self).__name__).lower()
        told = []
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) in (int, Reason):
                told.append(f"{each.name} {value}")
            elif value and isinstance(value, str | Allocation):
                told.append(" ".join(str(value).split()))
        words = ": ".join(filter(None, (name, ", ".join(told))))
        return "".join(letter for letter in words if letter.isprintable())  # details may be of users' code


@dataclass(frozen=True)
class Admitted(Event):
    """The run may begin to prepare its data."""


@dataclass(frozen=True)
class Prepared(Event):
    """The dataset version at ``dataset`` exists."""

    dataset: str


@dataclass(frozen=True)
class AllocationGranted(Event):
    """The scheduler has a place for the gang."""

    allocation: Allocation


@dataclass(frozen=True)
class AllocationLost(Event):
    """A node of the place is gone."""

    detail: str


@dataclass(frozen=True)
class AllocationUnusable(Event):
    """Agents keep dying at the place as soon as they are made."""

    detail: str


@dataclass(frozen=True)
class PreemptionRequested(Event):
    """The scheduler wants the place back; the run goes on later."""

    why: str


@dataclass(frozen=True)
class GangPlaced(Event):
    """All agents are there."""


@dataclass(frozen=True)
class Failed(Event):
    """The run cannot go on, whatever phase it is in."""

    reason: Reason
    detail: str


@dataclass(frozen=True)
class RanksReady(Event):
    """A generation has loaded and begins at ``step``."""

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
    """A rank process ended that should not have.

    Attributes:
        time: at which the coordinator learned of it, by its own clock: clocks of nodes differ.
    """

    generation: int
    reason: Reason
    detail: str
    time: float


@dataclass(frozen=True)
class AgentLost(Event):
    """An agent is dead (not merely silent)."""

    generation: int
    detail: str


@dataclass(frozen=True)
class RanksFinished(Event):
    """All ranks ended in order; ``complete`` when every step is done."""

    generation: int
    complete: bool


@dataclass(frozen=True)
class CancelRequested(Event):
    """A user wants the run to save and end; or its budget does, with another ``reason`` and a ``detail``."""

    reason: Reason = Reason.CANCELLED
    detail: str = ""


@dataclass(frozen=True)
class Concluded(Event):
    """Nothing is left to do after training."""


@dataclass(frozen=True)
class Tick(Event):
    """Time passed."""

    now: float


@dataclass(frozen=True)
class Action:
    """Something to do. Doing it twice is harmless: after a crash it may be."""


@dataclass(frozen=True)
class Prepare(Action):
    """Make the dataset."""


@dataclass(frozen=True)
class PlaceGang(Action):
    """Get a placement group and agents, new ones for those that died."""

    dataset: str
    allocation: Allocation


@dataclass(frozen=True)
class ReleaseAllocation(Action):
    """End all agents and give the place back, if there is one; then wait for another.

    Attributes:
        keep_copies: leave the gang's copies in the memory of its nodes, for when it comes back.
    """

    keep_copies: bool = False


@dataclass(frozen=True)
class Attach(Action):
    """After a restart of the coordinator: find the agents by name and listen to them again."""

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
    """Have the ranks save and end."""


@dataclass(frozen=True)
class Conclude(Action):
    """Generate the sample, complete the tracking."""

    dataset: str


@dataclass(frozen=True)
class Release(Action):
    """Give back all resources and close the tracking run."""

    reason: Reason
    detail: str
