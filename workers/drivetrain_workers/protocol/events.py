"""Events that ranks, fork servers and agents report: one frozen dataclass per event.

Ranks and fork servers send them to their agent over a local socket (`drivetrain_workers.protocol.messages`). The agent
handles some, and keeps the others for the coordinator, which reads them through Ray.
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
        time: time of the event, in seconds since the epoch.
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


@dataclass(frozen=True)
class RanksKilled(AgentEvent):
    """All ranks of the fork server have ended, as requested."""


@dataclass(frozen=True)
class RankForked(RankEvent):
    """A rank process was started."""

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
    """Progress of a rank's main thread.

    Attributes:
        step: optimizer steps done.
        phase: ``data``, ``step``, ``evaluate``, ``save``; before those, the current part of the start.
        phases: number of phases so far, so that two ranks in the same phase can be compared.
        for_s: seconds in this phase.
        longest_s: longest duration of this phase so far; 0 in the first.
    """

    step: int
    phase: str
    phases: int
    for_s: float
    longest_s: float


@dataclass(frozen=True)
class Heartbeat(RankEvent):
    """A rank's regular report that it is alive."""

    beat: Beat


@dataclass(frozen=True)
class PhaseReached(RankEvent):
    """A part of the start is complete: ``forked``, then ``grouped``."""

    phase: str


@dataclass(frozen=True)
class RankInitialized(RankEvent):
    """Model, optimizer and engine are initialized.

    Attributes:
        parameters: number of parameters, over all ranks.
    """

    parameters: int


@dataclass(frozen=True)
class RankLoaded(RankEvent):
    """The rank has loaded the newest state, or starts without one.

    Attributes:
        step: optimizer steps done.
        steps: optimizer steps of the whole run.
        unsaved: records of steps that the loaded state contains and the ledger does not; of rank 0 only.
    """

    step: int
    steps: int
    unsaved: tuple[StepRecord, ...] = ()


@dataclass(frozen=True)
class StepDone(RankEvent):
    """An optimizer step is done.

    Attributes:
        step_s: duration in seconds, from requesting its batch to its end.
        data_wait_s: part of it spent waiting for the batch.
        tokens: number of tokens, over all ranks; samples where they are not token sequences.
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
    """A file of predictions was written."""

    path: str


@dataclass(frozen=True)
class CheckpointCommitted(RankEvent):
    """A checkpoint is complete.

    Attributes:
        bytes: size of this rank's part.
        stall_s: seconds that steps waited for it.
        write_s: seconds that writing took.
    """

    step: int
    folder: str
    bytes: int
    stall_s: float
    write_s: float


@dataclass(frozen=True)
class CopyMade(RankEvent):
    """A rank's state at a step was copied to its node's memory."""

    step: int


@dataclass(frozen=True)
class ProblemFound(AgentEvent):
    """A problem that does not stop training: a damaged checkpoint, a copy that was not stored, a bad step."""

    message: str


@dataclass(frozen=True)
class RankFailed(RankEvent):
    """A rank ends with an error, which it reports before it exits."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class RankDone(RankEvent):
    """A rank ends normally. One that exits without this report has not done its work, whatever its exit code."""


@dataclass(frozen=True)
class TrainingFinished(RankEvent):
    """All ranks have done their work.

    Attributes:
        complete: whether every step is done; False when the ranks were asked to stop.
        peak_bytes: peak memory of the rank's process.
        base_bytes: memory of the process before the model was created.
    """

    complete: bool
    peak_bytes: int
    base_bytes: int


# From the agent ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankEnded(RankEvent):
    """A rank has ended with an error, was killed, or exited without a report.

    Attributes:
        code: see `RankExited`.
        reason, message: reported by the rank, if it could.
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
    """The load of a node, and the energy that the run used on it.

    Attributes:
        values: by the names of MLflow's system metrics, with the prefix ``system/NODE/``.
        energy_from: see `drivetrain_workers.agent.node_meter.Reading`.
    """

    node: str
    values: dict[str, float]
    energy_from: str


@dataclass(frozen=True)
class CheckpointUploaded(AgentEvent):
    """A checkpoint was uploaded to storage."""

    url: str
