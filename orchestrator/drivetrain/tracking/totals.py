"""Totals over all records of a spool, updated with each record, so that no query reads all records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from drivetrain_pipelines.storage.json_files import JsonObject

Record = JsonObject

_ENERGY = "/energy_joules"
_KEPT_SERIES = ("train", "eval")  # series whose newest values are kept; series of nodes are too many
_AVERAGED = ("tokens_per_s",)


@dataclass
class Totals:
    """Totals over the records of a run so far.

    Attributes:
        begun: whether the run has started at least once.
        steps: newest step of each series.
        newest: values of the newest record of the series ``train`` and ``eval``.
        joules: energy, over the whole run.
        joules_since_begin: energy since the run was submitted, or last resumed by a user.
        sums: sum and number of the values for `mean`.
    """

    begun: bool = False
    steps: dict[str, int] = field(default_factory=dict)
    newest: dict[str, dict[str, float]] = field(default_factory=dict)
    joules: float = 0.0
    joules_since_begin: float = 0.0
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Add the next record."""
        match record["op"]:
            case "begin":
                self.begun, self.joules_since_begin = True, 0.0
            case "metrics":
                self._add_metrics(record["series"], record["step"], record["values"])

    def _add_metrics(self, series: str, step: int, values: dict[str, float]) -> None:
        self.steps[series] = step
        if series in _KEPT_SERIES:
            self.newest[series] = values
        joules = joules_of(values)
        self.joules += joules
        self.joules_since_begin += joules
        for key in _AVERAGED:
            if key in values:
                total, count = self.sums.get(key, (0.0, 0))
                self.sums[key] = (total + values[key], count + 1)

    def newest_step(self, series: str) -> int:
        """Return the newest step of a series; 0 before the first."""
        return self.steps.get(series, 0)

    def evaluation(self) -> tuple[float | None, dict[str, float]]:
        """Return the loss and the job's metrics, by the job's names, of the newest evaluation."""
        values = self.newest.get("eval", {})
        metrics = {name.removeprefix("eval_"): value for name, value in values.items() if name != "eval_loss"}
        return values.get("eval_loss"), metrics

    def mean(self, key: str) -> float | None:
        """Return the mean of ``tokens_per_s`` over all records with this value; None without one."""
        total, count = self.sums.get(key, (0.0, 0))
        return total / count if count else None

    def to_json(self) -> JsonObject:
        """Return the totals as JSON, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Totals:
        """Return the totals from the output of `to_json`.

        Raises:
            ValueError, TypeError, AttributeError: another version wrote them.
        """
        if found.keys() != {each.name for each in fields(cls)}:
            raise ValueError(f"totals with other keys: {', '.join(found)}")
        sums = {key: (float(total), int(count)) for key, (total, count) in found["sums"].items()}
        return cls(**{**found, "sums": sums})


def joules_of(values: Mapping[str, float]) -> float:
    """Return the energy in the metrics measured by an agent."""
    return sum(value for name, value in values.items() if name.endswith(_ENERGY))
