"""What ranks, fork servers and agents report: one frozen dataclass per event.

Ranks and fork servers send them to their agent over a local socket (`drivetrain_workers.protocol.messages`); the agent
acts on some, and keeps the others for the coordinator, which reads them through Ray.
"""

from __future__ import annotations

import time as clock
from dataclasses import dataclass, field

from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.protocol.step_record import Evaluation, StepRecord


@dataclass(frozen=True)
class RankId:
    """One rank process: its rank in a generation of the gang."""

    rank: int
    generation: int


@dataclass(frozen=True)
class AgentEvent:
    """Base of all events.

    Attributes:
        time: at which it happened, in seconds since the epoch.
    """

    time: float = field(default_factory=clock.time, kw_only=True)


@dataclass(frozen=True)
class RankEvent(AgentEvent):
    """Base of the events of one rank."""

    source: RankId


# From the fork server ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForkServerReady(AgentEvent):
    """The fork server has imported everything that ranks need."""

    pid: int


@dataclass(frozen=True)
class RanksKilled(AgentEvent):
    """All ranks that the fork server had are gone, as it was asked."""


@dataclass(frozen=True)
class RankForked(RankEvent):
    """A rank process exists."""

    pid: int


@dataclass(frozen=True)
class RankExited(RankEvent):
    """A rank process has ended.

    Attributes:
        code: exit code; the negative number of the signal that killed it.
    """

    pid: int
    code: int


# From a rank ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beat:
    """Where a rank's main thread is.

    Attributes:
        step: optimizer steps done.
        phase: ``data``, ``step``, ``evaluate``, ``save``; before those, the part of the start that is under way.
        phases: counts phases begun, so that two ranks in the same phase can be compared.
        for_s: seconds in this phase.
        longest_s: that this phase took before, at most; 0 where it is the first.
    """

    step: int
    phase: str
    phases: int
    for_s: float
    longest_s: float


@dataclass(frozen=True)
class Heartbeat(RankEvent):
    """A rank's regular sign of life."""

    beat: Beat


@dataclass(frozen=True)
class PhaseReached(RankEvent):
    """A part of the start is done: ``forked``, then ``grouped``."""

    phase: str


@dataclass(frozen=True)
class RankInitialized(RankEvent):
    """Model, optimizer and engine exist.

    Attributes:
        parameters: their number, over all ranks.
    """

    parameters: int


@dataclass(frozen=True)
class RankLoaded(RankEvent):
    """The rank has loaded the newest state, or begins from nothing.

    Attributes:
        step: optimizer steps done.
        steps: of the whole run.
        unsaved: records of steps that the loaded state contains and the ledger does not; of rank 0 only.
    """

    step: int
    steps: int
    unsaved: tuple[StepRecord, ...] = ()


@dataclass(frozen=True)
class StepDone(RankEvent):
    """An optimizer step is done.

    Attributes:
        step_s: that it took, from asking for its batch to its end.
        data_wait_s: of these, spent waiting for the batch.
        tokens: that it trained on, over all ranks; samples where they are no token sequences.
    """

    record: StepRecord
    step_s: float
    data_wait_s: float
    tokens: int


@dataclass(frozen=True)
class EvaluationDone(RankEvent):
    """The model was evaluated after a step."""

    step: int
    evaluation: Evaluation


@dataclass(frozen=True)
class PredictionsWritten(RankEvent):
    """A file of predictions exists."""

    path: str


@dataclass(frozen=True)
class CheckpointCommitted(RankEvent):
    """A checkpoint is complete.

    Attributes:
        bytes: of this rank's part.
        stall_s: that steps waited for it.
        write_s: that writing took.
    """

    step: int
    folder: str
    bytes: int
    stall_s: float
    write_s: float


@dataclass(frozen=True)
class CopyMade(RankEvent):
    """A rank's state at a step is in its node's memory."""

    step: int


@dataclass(frozen=True)
class ProblemFound(AgentEvent):
    """Something is wrong, and training continues: a damaged checkpoint, a copy that was not kept, a bad step."""

    message: str


@dataclass(frozen=True)
class RankFailed(RankEvent):
    """A rank ends with an error, which it reports before it exits."""

    reason: Reason
    message: str
    traceback: str


@dataclass(frozen=True)
class TrainingFinished(RankEvent):
    """All ranks end in order.

    Attributes:
        complete: whether every step is done; not when the ranks were asked to stop.
        peak_bytes: most memory of the rank's process.
        base_bytes: memory of the process before there was a model.
    """

    step: int
    complete: bool
    peak_bytes: int
    base_bytes: int


# From the agent itself --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankLost(RankEvent):
    """A rank has ended with an error, or was killed.

    Attributes:
        code: see `RankExited`.
        reason, message: what the rank said of it, if it could.
    """

    code: int
    reason: Reason
    message: str = ""


@dataclass(frozen=True)
class RankHung(RankEvent):
    """A rank makes no progress."""

    message: str


@dataclass(frozen=True)
class NodeMeasured(AgentEvent):
    """How busy a node is, and the energy that the run's part of it took.

    Attributes:
        values: by the names of MLflow's system metrics, behind ``system/NODE/``.
        energy_from: see `drivetrain_workers.agent.node_meter.Reading`.
    """

    node: str
    values: dict[str, float]
    energy_from: str


@dataclass(frozen=True)
class CheckpointUploaded(AgentEvent):
    """Storage has a checkpoint."""

    url: str
