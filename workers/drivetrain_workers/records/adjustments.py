"""Changes of a run to its job: skipped batches, smaller micro-batches. Stored with the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from drivetrain_pipelines.storage.json_files import JsonObject, read_json, write_json


@dataclass(frozen=True)
class Skip:
    """Positions ``[start, stop)`` of the stream that are not trained on, and the reason."""

    start: int
    stop: int
    step: int
    why: str


@dataclass(frozen=True)
class Adjustments:
    """Adjustments of a run so far. The same job makes the same ones.

    Attributes:
        micro_batch_size: replaces that of the job.
        decided_by: generation that ran out of memory and chose it; several of its ranks may have run out.
    """

    skips: tuple[Skip, ...] = ()
    micro_batch_size: int | None = None
    decided_by: int = 0

    @classmethod
    def read(cls, path: Path) -> Adjustments:
        """Read the adjustments of a run; none where there is no file.

        Raises:
            CorruptFileError: the file differs from what was written.
        """
        if not path.exists():
            return cls()
        content: JsonObject = read_json(path)
        skips = tuple(Skip(**skip) for skip in content.pop("skips"))
        return cls(skips, **content)

    def write(self, path: Path) -> None:
        """Write the adjustments atomically."""
        write_json(path, asdict(self))

    def with_skip(self, skip: Skip) -> Adjustments:
        """Return these adjustments with one more skip."""
        return replace(self, skips=tuple(sorted((*self.skips, skip), key=lambda s: s.start)))


@dataclass(frozen=True)
class Positions:
    """The positions in the stream that each step trains on.

    Args:
        global_batch: samples per step.
        skips: whole batches that are skipped, in order.
    """

    global_batch: int
    skips: tuple[Skip, ...] = field(default=())

    def start(self, step: int) -> int:
        """Return the position of the first sample of the step after ``step`` steps are done."""
        position = step * self.global_batch
        for skip in self.skips:
            if position >= skip.start:
                position += skip.stop - skip.start
        return position

    def skipped(self, position: int) -> bool:
        """Check whether the batch that begins at ``position`` is skipped."""
        return any(skip.start <= position < skip.stop for skip in self.skips)
