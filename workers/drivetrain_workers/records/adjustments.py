"""What a run has changed about itself: batches that are passed over, smaller micro-batches. Kept with the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from drivetrain_pipelines.storage.checksums import JsonObject, read_json, write_json


@dataclass(frozen=True)
class Skip:
    """Positions ``[start, stop)`` of the stream that are not trained on, and why."""

    start: int
    stop: int
    step: int
    why: str


@dataclass(frozen=True)
class Adjustments:
    """Adjustments of a run so far; the same job makes the same ones.

    Attributes:
        micro_batch_size: instead of the job's.
        decided_by: generation that ran out of memory and chose it; several of its ranks may have.
    """

    skips: tuple[Skip, ...] = ()
    micro_batch_size: int | None = None
    decided_by: int = 0

    @classmethod
    def read(cls, path: Path) -> Adjustments:
        """Those of a run; none where there is no file.

        Raises:
            CorruptFileError: the file is not what was written.
        """
        if not path.exists():
            return cls()
        content: JsonObject = read_json(path)
        skips = tuple(Skip(**skip) for skip in content.pop("skips"))
        return cls(skips, **content)

    def write(self, path: Path) -> None:
        """Store them, atomically."""
        write_json(path, asdict(self))

    def with_skip(self, skip: Skip) -> Adjustments:
        """These and one more."""
        return replace(self, skips=tuple(sorted((*self.skips, skip), key=lambda s: s.start)))


@dataclass(frozen=True)
class Positions:
    """Which stretch of the stream each step trains on.

    Args:
        global_batch: samples per step.
        skips: whole batches that are passed over, in order.
    """

    global_batch: int
    skips: tuple[Skip, ...] = field(default=())

    def start(self, step: int) -> int:
        """Position of the first sample of the step after ``step`` steps are done."""
        position = step * self.global_batch
        for skip in self.skips:
            if position >= skip.start:
                position += skip.stop - skip.start
        return position

    def skipped(self, position: int) -> bool:
        """Whether the batch that begins at ``position`` is passed over."""
        return any(skip.start <= position < skip.stop for skip in self.skips)
