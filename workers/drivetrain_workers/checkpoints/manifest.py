"""The JSON files of a checkpoint: the manifest of the whole, and the index of each rank's file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, Self

from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain_workers.protocol.step_record import Evaluation

FORMAT = 2


class Fragment(NamedTuple):
    """A contiguous range of a parameter's weights or moment in a rank's file.

    Attributes:
        kind: `drivetrain_workers.engine.flat_state.WEIGHTS`, or the name of a moment.
        start, length: elements of the flattened parameter.
        offset: byte of the file at which the range begins.
    """

    parameter: str
    kind: str
    start: int
    length: int
    offset: int


class ReplicatedTensor(NamedTuple):
    """A tensor in a rank's file that the optimizer does not own."""

    name: str
    dtype: str
    shape: list[int]
    offset: int


@dataclass(frozen=True)
class GroupState:
    """The optimizer's settings and counters of one parameter group."""

    hyper: JsonObject
    scalars: dict[str, float]


@dataclass(frozen=True)
class Contents:
    """The layout of a rank's file, and the parts of the rank's state that are stored as JSON.

    Attributes:
        groups: optimizer parameter groups, by index.
        rng: see `drivetrain_workers.checkpoints.snapshot.rng_state`.
        flags: the fields of `drivetrain_workers.modeling.model_flags.ModelFlags`; none where they were not saved.
        missed: numbers of updates that parameters have missed for lack of a gradient, by name.
    """

    fragments: tuple[Fragment, ...] = ()
    groups: dict[int, GroupState] = field(default_factory=dict)
    replicated: tuple[ReplicatedTensor, ...] = ()
    rng: JsonObject = field(default_factory=dict)
    flags: JsonObject = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RankIndex:
    """The index of a rank's file.

    Attributes:
        bytes: size of the file.
        xxh3: digests of its blocks.
    """

    contents: Contents
    bytes: int
    xxh3: list[str]

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        contents = self.contents
        return {
            "fragments": contents.fragments,
            "groups": {str(index): vars(group) for index, group in contents.groups.items()},
            "replicated": contents.replicated,
            "rng": contents.rng,
            "flags": contents.flags,
            "missed": contents.missed,
            "bytes": self.bytes,
            "xxh3": self.xxh3,
        }

    @classmethod
    def from_json(cls, index: JsonObject) -> Self:
        """Decode the result of `to_json`."""
        contents = Contents(
            tuple(Fragment(*fragment) for fragment in index["fragments"]),
            {int(number): GroupState(_with_tuples(g["hyper"]), g["scalars"]) for number, g in index["groups"].items()},
            tuple(ReplicatedTensor(*tensor) for tensor in index["replicated"]),
            index["rng"],
            index.get("flags", {}),
            index.get("missed", {}),
        )
        return cls(contents, index["bytes"], index["xxh3"])


@dataclass(frozen=True)
class Probe:
    """The loss of a batch with the saved weights, for `drivetrain_workers.checkpoints.proof.verify_loss`.

    Attributes:
        position: position of the batch in the stream of samples.
    """

    position: int
    loss: float


@dataclass(frozen=True)
class History:
    """State of the run, apart from the model, that later steps depend on. Its size is bounded.

    Attributes:
        began: end of the run's first step, in seconds since the epoch.
        losses: losses that the guard compares the next one with, oldest first.
        best: score of the best evaluation (lower is better); None where there was none.
        since_best: number of evaluations since the best one.
    """

    began: float
    losses: tuple[float, ...] = ()
    best: float | None = None
    since_best: int = 0


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint, or a copy in memory.

    Attributes:
        step: optimizer steps done.
        position: position in the stream of samples (stored as ``samples``).
        shapes: shape of every trained parameter.
        evaluation: evaluation at this step, if there was one.
        probe: probe of the loss, if the job requests one.
        history: history of the run up to this step; None where no run has saved it.
        whole: each rank's file has all of its state; otherwise ranks with the same state save parts of it.
    """

    step: int
    position: int
    world_size: int
    zero_stage: int
    shapes: dict[str, list[int]]
    evaluation: Evaluation | None = None
    probe: Probe | None = None
    history: History | None = None
    whole: bool = False
    format: int = FORMAT

    @property
    def score(self) -> float | None:
        """Score of the checkpoint (lower is better); None without an evaluation or a finite score."""
        return self.evaluation.score if self.evaluation and math.isfinite(self.evaluation.score) else None

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        manifest = asdict(self)
        return {"step": manifest.pop("step"), "samples": manifest.pop("position"), **manifest}

    @classmethod
    def from_json(cls, manifest: JsonObject) -> Self:
        """Decode the result of `to_json`."""
        evaluation, probe, history = (manifest.get(key) for key in ("evaluation", "probe", "history"))
        return cls(
            manifest["step"],
            manifest["samples"],
            manifest["world_size"],
            manifest["zero_stage"],
            manifest["shapes"],
            Evaluation(**evaluation) if evaluation else None,
            Probe(**probe) if probe else None,
            History(**{**history, "losses": tuple(history["losses"])}) if history else None,
            manifest.get("whole", False),
            manifest["format"],
        )


def _with_tuples(settings: JsonObject) -> JsonObject:
    """Convert lists in settings back to the tuples that they were before JSON."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
