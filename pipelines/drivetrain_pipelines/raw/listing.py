"""The files of a source: those that are used, those that are ignored, and the splits that its layout defines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drivetrain_pipelines.raw.sources import SourceFile
from drivetrain_pipelines.spec import StorageSpec

EVALUATION_SPLITS = ("validation", "test")  # in this order: the first that exists evaluates


@dataclass(frozen=True)
class Ignored:
    """Files of a source that are not used.

    Attributes:
        kinds: number of files by what they are, such as ``.md``, ``hidden`` or ``split test``.
        first: the first names, relative to the source.
    """

    kinds: Mapping[str, int] = field(default_factory=dict)
    first: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of ignored files."""
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    Attributes:
        files: the files that the source stands for: all, or those of the split that trains (for an evaluation source:
            that evaluates) where the layout has splits.
        format: never ``auto``; ``any`` with `data.reader`.
        ignored: all other files, except those in ``splits``.
        splits: files of every split by its name (``train``, ``validation``, ``test``, or as the layout names it);
            empty for a source without splits.
        labels: for formats with one record per file: the label of each of the files (of all splits) by URL, as
            written, which may be empty. Empty where nothing names labels: all files are then used without a label.
    """

    files: tuple[SourceFile, ...]
    format: str
    ignored: Ignored = Ignored()
    splits: Mapping[str, tuple[SourceFile, ...]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def evaluation_split(self) -> str:
        """Name of the split that evaluates a job without `data.eval_source`; empty for none."""
        return next((name for name in EVALUATION_SPLITS if name in self.splits), "")

    def summary(self, *, evaluates: bool = False) -> str:
        """Return a sentence that counts the files used and the files ignored.

        Args:
            evaluates: the files of `evaluation_split` are used, too.
        """
        raise NotImplementedError


def list_source(
    source: str,
    format_: str,
    storage: StorageSpec,
    downloads: Path,
    key: str,
    *,
    evaluates: bool = False,
    label_column: str = "label",
) -> Listing:
    """Return the files of a source in a fixed order, each with a digest.

    Args:
        source: see `check_source`.
        format_: a format, ``auto``, or ``any`` with `data.reader`.
        downloads: folder where packages are unpacked.
        key: key of the job file, for errors.
        evaluates: the source is an evaluation source: where its layout has splits, the one that evaluates is used.
        label_column: column of a ``metadata`` file that holds the labels.

    Raises:
        InputError: nothing usable was found, or what was found can be read in two ways.
        PrepareError: the source cannot be read, or a file does not contain what its name says.
    """
    raise NotImplementedError
