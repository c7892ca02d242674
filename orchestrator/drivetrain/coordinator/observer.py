"""Interpretation of agent events for the view, the tracker and the pure core."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from drivetrain_workers.protocol import events as protocol
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.protocol.step_record import Evaluation, StepRecord
from drivetrain_workers.records import ledger

from drivetrain.coordinator.live_run import LiveRun
from drivetrain.runs import events as ev
from drivetrain.runs.root_cause import Failure, describe_failures
from drivetrain.tracking.totals import joules_of
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Findings:
    """The consequences of an agent event.

    Attributes:
        events: events for the core.
        failed_ranks: ranks whose failure is attributed to their node, not to the job.
    """

    events: tuple[ev.Event, ...] = ()
    failed_ranks: tuple[int, ...] = ()


_NOTHING = Findings()


class Observer:
    """Interprets the events of one run's agents.

    Args:
        live: the run; its view and facts are updated.
        tracker: logs the metrics.
        ledger_folder: of the run.
    """

    def __init__(self, live: LiveRun, tracker: Tracker, ledger_folder: Path) -> None:
        self._live, self._tracker, self._ledger = live, tracker, ledger_folder
        self._failures: dict[int, list[Failure]] = {}  # by generation

    def observe(self, event: protocol.AgentEvent, generation: int) -> Findings:
        """Process one event; ``generation`` is the newest of the run."""
        if isinstance(event, protocol.RankEvent):
            return self._of_rank(event, event.source.generation == generation)
        match event:
            case protocol.NodeMeasured():
                self._measured(event)
            case protocol.CheckpointUploaded(url):
                self._live.update_facts(stored=max(url, self._live.view.facts.stored))
            case protocol.ProblemFound(message):
                self._live.view.problem = message
                _log.warning("%s: %s", self._live.id, message)
        return _NOTHING

    def _of_rank(self, event: protocol.RankEvent, current: bool) -> Findings:
        """Process an event of a rank; of older generations only events that remain valid."""
        match event:
            case protocol.EvaluationDone():
                self._evaluated(event.step, event.time, event.evaluation)
            case protocol.PredictionsWritten(_, path):
                self._tracker.artifact(Path(path), "predictions")
            case protocol.CheckpointCommitted(source, step, folder):
                self._live.show_facts(checkpoint=folder)
                return Findings((ev.Committed(source.generation, step),))
            case protocol.TrainingFinished(source):
                self._live.update_facts(peak_bytes=event.peak_bytes, base_bytes=event.base_bytes)
                return Findings((ev.RanksFinished(source.generation, event.complete),))
            case protocol.RankEnded():
                return self._lost(event, current)
            case _ if current:
                return self._of_current_rank(event)
        return _NOTHING

    def _of_current_rank(self, event: protocol.RankEvent) -> Findings:
        view, rank = self._live.view, event.source.rank
        match event:
            case protocol.RankForked(_, pid):
                view.pids = {**view.pids, f"rank-{rank}": pid}
            case protocol.PhaseReached(_, phase) if rank == 0:
                view.mark(phase, event.time)
            case protocol.RankInitialized(_, parameters) if rank == 0:
                view.mark("initialized", event.time)
                self._live.update_facts(parameters=parameters)
            case protocol.RankLoaded() if rank == 0:
                view.mark("loaded", event.time)
                view.steps, view.step = event.steps, event.step
                self._log_missing(event.step, event.unsaved)
                return Findings((ev.RanksReady(event.source.generation, event.step),))
            case protocol.StepDone():
                return self._stepped(event)
            case protocol.RankHung(source, message):
                view.problem = message
                self._live.show_facts(lost_at=event.time)
                lost = ev.RankLost(source.generation, Reason.HUNG, message, self._live.clock())
                return Findings((lost,), (rank,))
        return _NOTHING

    def _stepped(self, event: protocol.StepDone) -> Findings:
        view, record = self._live.view, event.record
        if "stepped" not in view.timeline:
            view.mark("stepped", event.time)
        view.record_step(event)
        values = _values(record) | {
            "tokens_per_s": event.tokens / event.step_s,
            "data_wait_share": event.data_wait_s / event.step_s,
            "step_s": event.step_s,
        }
        self._tracker.metrics("train", record.step, record.time, values)
        return Findings((ev.Stepped(record.generation, record.step),))

    def _measured(self, event: protocol.NodeMeasured) -> None:
        second = int(event.time - self._live.created)
        if self._tracker.metrics(f"system/{event.node}", second, event.time, event.values):
            self._live.view.energy_j += joules_of(event.values)
        if self._live.view.facts.energy_from != event.energy_from:
            self._live.update_facts(energy_from=event.energy_from)

    def _log_missing(self, loaded_step: int, unsaved: Iterable[StepRecord]) -> None:
        """Log the steps whose reports were lost with an agent: from the ledger and the loaded state."""
        if not loaded_step:
            return
        reported = self._tracker.newest_step("train") - 1  # the evaluation of the newest step may be missing
        for record in [*ledger.read_after(self._ledger, reported), *unsaved]:
            if record.step <= loaded_step:  # the tracker skips steps that it has
                self._tracker.metrics("train", record.step, record.time, _values(record))
                if record.evaluation:
                    self._evaluated(record.step, record.time, record.evaluation)

    def _evaluated(self, step: int, at: float, found: Evaluation) -> None:
        metrics = {f"eval_{name}": value for name, value in found.metrics.items()}
        self._tracker.metrics("eval", step, at, {"eval_loss": found.loss, **metrics})
        self._live.view.eval_loss, self._live.view.metrics = found.loss, found.metrics

    def _lost(self, event: protocol.RankEnded, current: bool) -> Findings:
        generation, rank = event.source.generation, event.source.rank
        how = f"was killed by signal {-event.code}" if event.code < 0 else f"exited with code {event.code}"
        how += f": {event.message}" if event.message else ""
        failures = self._failures.setdefault(generation, [])
        failures.append(Failure(event.time, rank, event.reason, how))
        if generation == max(self._failures):  # also after the next one has started: reports of other nodes are delayed
            self._live.view.problem = describe_failures(failures)
        lost = ev.RankLost(generation, event.reason, f"rank {rank} {how}", self._live.clock())
        if not current:
            return Findings((lost,))
        self._live.show_facts(lost_at=event.time)
        return Findings((lost,), (rank,) if event.reason is Reason.RANK_KILLED else ())


def _values(record: StepRecord) -> dict[str, float]:
    norm = {} if record.gradient_norm is None else {"gradient_norm": record.gradient_norm}
    return {"loss": record.loss, "learning_rate": record.learning_rate, **norm, "world_size": record.world_size}
