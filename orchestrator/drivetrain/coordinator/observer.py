"""What the agents of a run tell, and what it means: for the view, the tracker and the pure core."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.records import ledger

from drivetrain.accounting.cost import joules_of
from drivetrain.runs import events as ev
from drivetrain.runs.culprits import Failure, describe
from drivetrain.runs.view import RunView
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)


class Observer:
    """Takes in the events of one run's agents.

    Args:
        view: of the run, kept up to date.
        tracker: where metrics go.
        ledger_folder: of the run.
        learn: stores facts of the run.
        decide: has the core decide on an event.
        blame: notes that a rank has failed, and not for a fault of the job's own.
        created: when the run was submitted, in seconds since the epoch.
    """

    def __init__(
        self,
        view: RunView,
        tracker: Tracker,
        ledger_folder: Path,
        learn: Callable[..., None],
        decide: Callable[[ev.Event], None],
        blame: Callable[[int], None],
        created: float,
    ) -> None:
        self._view, self._tracker, self._ledger = view, tracker, ledger_folder
        self._learn, self._decide, self._blame = learn, decide, blame
        self._created = created
        self._failures: dict[int, list[Failure]] = {}  # by generation

    def observe(self, event: dict[str, Any], generation: int) -> None:
        """Take in one event; ``generation`` is the one that the run is at."""
        current = event.get("generation") == generation
        match event["type"]:
            case "forked" | "phase" if current:
                self._started(event)
            case "step" if current:
                self._stepped(event)
            case "system":
                self._measured(event)
            case "eval":
                self._evaluated(event["step"], event["time"], event)
            case "predictions":
                self._tracker.artifact(Path(event["path"]), "predictions")
            case "checkpoint":
                self._view.facts = {**self._view.facts, "checkpoint": event["folder"]}
                self._decide(ev.Committed(event["generation"], event["step"]))
            case "uploaded":
                self._learn(stored=max(event["url"], self._view.facts.get("stored", "")))
            case "corrupt_checkpoint" | "warning":
                self._view.problem = event["message"]
                _log.warning("%s: %s", self._view.run_id, event["message"])
            case "finished":
                self._learn(peak_bytes=event["peak_bytes"], base_bytes=event["base_bytes"])
                self._decide(ev.RanksFinished(event["generation"], event["complete"]))
            case "exited" if event["code"] != 0:
                self._lost(event, current)
            case "hung" if current:
                self._hung(event)
            case _:
                pass  # an older generation's, or of no consequence

    def _started(self, event: dict[str, Any]) -> None:
        if event["type"] == "forked":
            self._view.pids = {**self._view.pids, f"rank-{event['rank']}": event["pid"]}
        elif event["rank"] == 0:
            self._view.mark(event["phase"], event["time"])
        if event.get("phase") == "initialized" and event["rank"] == 0:
            self._learn(parameters=event["parameters"])
        if event.get("phase") == "loaded" and event["rank"] == 0:
            self._view.steps, self._view.step = event["steps"], event["step"]
            self._fill_gap(event["step"], event["unsaved"])
            self._decide(ev.RanksReady(event["generation"], event["step"]))

    def _stepped(self, event: dict[str, Any]) -> None:
        if "stepped" not in self._view.timeline:
            self._view.mark("stepped", event["time"])
        self._view.stepped(event)
        values = {
            "loss": event["loss"],
            "learning_rate": event["learning_rate"],
            "gradient_norm": event["gradient_norm"],
            "tokens_per_s": event["tokens"] / event["step_s"],
            "data_wait_share": event["data_wait_s"] / event["step_s"],
            "step_s": event["step_s"],
            "world_size": event["world_size"],
        }
        self._tracker.metrics("train", event["step"], event["time"], values)
        self._decide(ev.Stepped(event["generation"], event["step"]))

    def _measured(self, event: dict[str, Any]) -> None:
        second = int(event["time"] - self._created)
        if self._tracker.metrics(f"system/{event['node']}", second, event["time"], event["values"]):
            self._view.energy_j += joules_of(event["values"])
        if self._view.facts.get("energy_from") != event["from"]:
            self._learn(energy_from=event["from"])

    def _fill_gap(self, loaded_step: int, unsaved: list[dict[str, Any]]) -> None:
        """Reports that died with an agent are in the ledger, or came with the state that this generation has loaded."""
        if not loaded_step:
            return
        for record in [*ledger.read(self._ledger), *unsaved]:
            if record["step"] <= loaded_step:  # the tracker takes only what it does not have yet
                values = {key: record[key] for key in ("loss", "learning_rate", "gradient_norm", "world_size")}
                self._tracker.metrics("train", record["step"], record["time"], values)
                if "evaluation" in record:
                    self._evaluated(record["step"], record["time"], record["evaluation"])

    def _evaluated(self, step: int, at: float, found: dict[str, Any]) -> None:
        metrics = {f"eval_{name}": value for name, value in found["metrics"].items()}
        self._tracker.metrics("eval", step, at, {"eval_loss": found["loss"], **metrics})
        self._view.eval_loss, self._view.metrics = found["loss"], found["metrics"]

    def _hung(self, event: dict[str, Any]) -> None:
        self._view.problem = event["message"]
        self._view.facts = {**self._view.facts, "lost_at": event["time"]}
        self._blame(event["rank"])
        self._decide(ev.RankLost(event["generation"], Reason.HUNG, event["message"], event["time"]))

    def _lost(self, event: dict[str, Any], current: bool) -> None:
        reason = Reason(event.get("kind", Reason.RANK_KILLED))
        code, generation = event["code"], event["generation"]
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        how += f": {event['message']}" if "message" in event else ""
        failures = self._failures.setdefault(generation, [])
        failures.append(Failure(event["time"], event["rank"], reason, how))
        if generation == max(self._failures):  # also when the next one has begun: other nodes tell later
            self._view.problem = describe(failures)
        if current:
            self._view.facts = {**self._view.facts, "lost_at": event["time"]}
            if reason is Reason.RANK_KILLED:
                self._blame(event["rank"])
        self._decide(ev.RankLost(generation, reason, f"rank {event['rank']} {how}", event["time"]))
