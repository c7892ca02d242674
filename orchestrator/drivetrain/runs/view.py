"""The view of a run for clients: live, and after its end."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, fields, replace
from typing import Self

from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_workers.protocol.events import StepDone

from drivetrain.runs.facts import RunFacts

_SPEED_WINDOW = 20  # steps


@dataclass
class RunView:
    """Current values of a run, updated by its loop and copied to clients.

    Attributes:
        version: number of changes, which lets clients wait for the next one.
        preparing: (done, total, description) of the data preparation.
        waiting: why the run has no allocation yet.
        step_s: seconds per step, over the newest steps.
        data_wait_share: share of step time spent waiting for data.
        energy_j: joules since the run was submitted, or resumed by a user.
        timeline: of the newest generation: time at which each part of its start was done, in seconds since the epoch.
    """

    run_id: str
    phase: str = "queued"
    version: int = 0
    preparing: tuple[int, int, str] = (0, 0, "")
    waiting: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    step_s: float | None = None
    data_wait_share: float | None = None
    eta_s: float | None = None
    energy_j: float = 0.0
    generation: int = 0
    restarts: int = 0
    problem: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    timeline: dict[str, float] = field(default_factory=dict)
    facts: RunFacts = field(default_factory=RunFacts)

    def __post_init__(self) -> None:
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=_SPEED_WINDOW)  # step_s, data_wait_s, tokens

    def record_step(self, event: StepDone) -> None:
        """Update the view from a rank's report of one step."""
        record = event.record
        self._recent.append((event.step_s, event.data_wait_s, event.tokens))
        seconds = sum(s for s, _, _ in self._recent)
        self.step, self.loss, self.learning_rate = record.step, record.loss, record.learning_rate
        self.tokens_per_s = sum(tokens for _, _, tokens in self._recent) / seconds
        self.data_wait_share = sum(wait for _, wait, _ in self._recent) / seconds
        self.step_s = seconds / len(self._recent)
        self.eta_s = (self.steps - self.step) * self.step_s

    def copy(self) -> Self:
        """Return a copy."""
        return replace(self)

    def to_json(self) -> JsonObject:
        """Return every value by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"facts": self.facts.to_json()}

    @classmethod
    def from_json(cls, record: JsonObject) -> Self:
        """Return the view from the output of `to_json`; unknown names are ignored."""
        known = {each.name: record[each.name] for each in fields(cls) if each.name in record}
        done, total, what = record["preparing"]
        return cls(**{**known, "preparing": (done, total, what), "facts": RunFacts.from_json(record["facts"])})

    @property
    def start_s(self) -> float | None:
        """Seconds from the request to start the newest generation to its first step."""
        requested, stepped = self.timeline.get("requested"), self.timeline.get("stepped")
        return None if requested is None or stepped is None else stepped - requested

    def mark(self, part: str, at: float | None = None) -> None:
        """Record the time at which a part of the newest generation's start was done."""
        self.timeline = {
            **self.timeline,
            part: time.time() if at is None else at,
        }  # replaced, not changed: other threads may be reading
