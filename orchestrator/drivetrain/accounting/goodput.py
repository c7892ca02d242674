"""Every second of a run, from when it was submitted to its end, in exactly one class. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from drivetrain_workers.records.step_times import PARTS, TURN, Turns
from numpy.typing import NDArray

CLASSES = {
    "queued": "waiting for a place on the cluster",
    "provisioning": "waiting for agents at the place",
    "preparing": "preparing data",
    "starting": "forking ranks, joining, building the model",
    "computing": "forward, backward and optimizer",
    "waiting for data": "the next batch was not there yet",
    "communicating": "ranks waiting in collectives",
    "saving": "training waiting for checkpoints",
    "evaluating": "evaluations and predictions",
    "recomputing": "lost to a failure, or done again because of it",
    "recovering": "from a failure to the next step",
    "finishing": "sample, pictures and the last uploads",
    "idle": "none of these",
}

_WITHOUT_RANKS = {
    "queued": "queued",
    "preparing": "preparing",
    "ready": "queued",
    "placing": "provisioning",
    "waiting": "recovering",
    "finishing": "finishing",
    "ended": "idle",
}
_LIVE = ("starting", "training", "stopping")  # phases in which there are ranks
_OF_PART = dict(
    zip(PARTS, ("waiting for data", "computing", "communicating", "evaluating", "saving"), strict=True),
)
_NUMBER = {name: number for number, name in enumerate(CLASSES)}
_NO_TURNS: Turns = np.empty(0, TURN)


@dataclass(frozen=True)
class Stay:
    """How long a run was in one phase.

    Attributes:
        generation: of ranks, at the time.
        begin, end: seconds since the epoch.
    """

    phase: str
    generation: int
    begin: float
    end: float


@dataclass(frozen=True)
class Goodput:
    """The account of a run.

    Attributes:
        begins, ends: of stretches of time, in order and without gaps; seconds since the epoch.
        classes: of each stretch, as an index into `CLASSES`.
    """

    begins: NDArray[np.float64]
    ends: NDArray[np.float64]
    classes: NDArray[np.int64]

    @property
    def wall_s(self) -> float:
        """Seconds from the first to the last."""
        return float(self.ends[-1] - self.begins[0]) if len(self.ends) else 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """By class; they add up to `wall_s`."""
        sums = np.bincount(self.classes, self.ends - self.begins, len(CLASSES))
        return dict(zip(CLASSES, sums.tolist(), strict=True))

    @property
    def share(self) -> float:
        """Of the time since the run got its first place, what went into steps that count: 0 to 1."""
        seconds = self.seconds
        running = self.wall_s - seconds["queued"] - seconds["preparing"]
        return (seconds["computing"] + seconds["communicating"]) / running if running > 0 else 0.0

    def over_time(self, slices: int) -> NDArray[np.float64]:
        """Shares of each class ``[classes, slices]`` in equal slices of the whole time."""
        edges = np.linspace(self.begins[0], self.ends[-1], slices + 1)
        shares = np.empty((len(CLASSES), slices))
        for number in range(len(CLASSES)):
            mine = self.classes == number
            lengths = np.where(mine, self.ends - self.begins, 0.0)
            spent = np.concatenate([[0.0], np.cumsum(lengths)])  # up to the end of each stretch
            at = np.interp(edges, np.concatenate([self.begins[:1], self.ends]), spent)
            shares[number] = np.diff(at) / np.diff(edges)
        return shares


def stays(created: float, history: Iterable[tuple[float, str, int]], now: float) -> list[Stay]:
    """The stays of a run, from its transitions (when, phase, generation) and when it was submitted.

    Args:
        now: where the account ends, unless the run has ended before.
    """
    marks = [(created, "queued", 0), *history]
    if marks[-1][1] != "ended":
        marks.append((now, "", 0))
    return [Stay(phase, generation, at, max(at, then)) for (at, phase, generation), (then, *_) in pairwise(marks)]


def account(found: Sequence[Stay], turns: Mapping[int, Turns]) -> Goodput:
    """Account for the time of a run.

    Where ranks lived, the turns that rank 0 has written say what was done; what lies between them is idle. A turn that
    ends with a step which an earlier generation had reached before is done again. What follows the last turn of a
    generation that has failed is lost.

    Args:
        found: as of `stays`.
        turns: of each generation, as of `drivetrain_workers.records.step_times.read_turns`.
    """
    stretches = _Stretches(found[0].begin)
    failed, reached = False, 0
    groups = [list(group) for _, group in groupby(found, key=_life)]
    for group, after in zip(groups, [*groups[1:], []], strict=True):
        first, last = group[0], group[-1]
        if first.phase not in _LIVE:
            for stay in group:
                failed = failed and stay.phase != "ended"  # whoever resumes it begins anew
                stretches.add(stay.end, "recovering" if failed else _WITHOUT_RANKS[stay.phase])
            continue
        records = turns.get(first.generation, _NO_TURNS)
        records = records[records["began"] < last.end]
        begins_training = float(records["began"][0]) if len(records) else last.end
        stretches.add(begins_training, "recovering" if failed else "starting")
        failed = bool(after) and after[0].phase != "finishing" and last.phase != "stopping"
        if len(records):
            stretches.add_turns(records, last.end, reached)
            stretches.add(last.end, "recomputing" if failed else "saving" if after else "computing")
            reached = max(reached, int(records["step"].max()))
    return stretches.done()


def _life(stay: Stay) -> tuple[bool, int]:
    """Stays in which the same ranks live belong together."""
    return (True, stay.generation) if stay.phase in _LIVE else (False, 0)


class _Stretches:
    """Collects stretches of time, one behind the other."""

    def __init__(self, begin: float) -> None:
        self._at = begin
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]] = []

    def add(self, end: float, name: str) -> None:
        """From where the last one ended to ``end``."""
        end = max(end, self._at)
        self._parts.append((np.array([self._at]), np.array([end]), np.array([_NUMBER[name]])))
        self._at = end

    def add_turns(self, records: Turns, limit: float, reached: int) -> None:
        """The parts of all turns; what lies between turns is idle. Steps up to ``reached`` are done again."""
        edges = np.empty((len(records), len(PARTS) + 2))
        edges[:, 0] = records["began"]
        edges[:, 1:-1] = np.stack([records[part] for part in PARTS], axis=1)
        edges[:, :-1] = np.cumsum(edges[:, :-1], axis=1)
        following = np.append(edges[1:, 0], min(limit, edges[-1, -2]))
        edges[:, -1] = following
        edges = np.maximum.accumulate(np.clip(np.minimum(edges, following[:, None]), self._at, limit).ravel())
        edges = edges.reshape(len(records), -1)
        classes = np.tile([_NUMBER[_OF_PART[part]] for part in PARTS] + [_NUMBER["idle"]], (len(records), 1))
        classes[records["step"] <= reached, : len(PARTS)] = _NUMBER["recomputing"]
        self._parts.append((edges[:, :-1].ravel(), edges[:, 1:].ravel(), classes.ravel()))
        self._at = float(edges[-1, -1])

    def done(self) -> Goodput:
        """All of them."""
        begins, ends, classes = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        return Goodput(begins, ends, classes)
