"""Checkpoints in object storage: what `store` is for a run's own folder.

The names are the same, ``manifest.json`` is the last file to arrive, and whatever comes back is compared with its
checksums block by block. Beside the checkpoints lie the ledger and the adjustments, without which a run that has lost
its folder could go on, but not exactly as it would have.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.checksums import atomic_write, parse_json
from drivetrain_pipelines.storage.fetch import Fetcher
from drivetrain_pipelines.storage.folder import StorageFolder, open_storage

from drivetrain_workers.checkpoints.manifest import Manifest, RankIndex
from drivetrain_workers.checkpoints.policy import to_keep
from drivetrain_workers.checkpoints.store import MANIFEST, rank_file, rank_index, scores, verify_rank
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import CheckpointSpec

_CORRUPT = "manifest.corrupt.json"  # the manifest of a checkpoint that could not be loaded
_PATIENCE_S = 20.0  # the uploader, which tells of failures, has all the patience in the world


class RemoteCheckpoints:
    """The checkpoints of one run in storage.

    Args:
        run: its own folder.
        spec: the job's; has a ``location``.
    """

    def __init__(self, run: RunFolder, spec: CheckpointSpec) -> None:
        self._run, self._keep = run, spec.keep
        self._folder = StorageFolder(f"{(spec.location or '').rstrip('/')}/{run.path.name}", spec.storage, _PATIENCE_S)
        self._scores: dict[CheckpointId, float | None] = {}  # of those whose manifest was read

    @property
    def location(self) -> str:
        """Where they lie."""
        return self._folder.location

    def url(self, checkpoint: CheckpointId) -> str:
        """Where a checkpoint lies."""
        return self._folder.url(self._name(checkpoint))

    def committed(self) -> list[CheckpointId]:
        """Every checkpoint that has a manifest there, newest first. Raises OSError."""
        return self._committed(self._folder.files(self._run.checkpoints.name))

    def set_aside_before(self) -> list[CheckpointId]:
        """Checkpoints there that turned out to be of no use, newest first. Raises OSError."""
        names = self._folder.files(self._run.checkpoints.name)
        found = {self._parse(name) for name in names if name.endswith(f"/{_CORRUPT}")}
        return sorted((c for c in found if c), reverse=True)

    def sync(self) -> list[CheckpointId]:
        """Upload what should be kept and is not there, newest first; remove what need not be kept. May be repeated.

        Returns:
            What was uploaded.

        Raises:
            OSError, and what else the storage's client raises: a file was refused for 20 s.
        """
        names = self._folder.files()
        there = self._committed(names)
        local = scores(self._run.checkpoints)
        known = {**{checkpoint: self._score(checkpoint) for checkpoint in there}, **local}
        wanted = to_keep(known, self._keep)
        missing = sorted(wanted - set(there), reverse=True)
        done: list[CheckpointId] = []
        for checkpoint in missing:
            try:
                self._upload(checkpoint, names)
            except FileNotFoundError:
                if (checkpoint.folder(self._run.checkpoints) / MANIFEST).exists():
                    raise  # it is storage that misses something
                continue  # removed meanwhile, because there are newer ones
            done.append(checkpoint)
        for checkpoint in [c for c in there if c not in wanted]:
            self._folder.remove(f"{self._name(checkpoint)}/{MANIFEST}")  # first: the rest is no checkpoint any more
        for checkpoint in self._unneeded(names, wanted):
            self._folder.remove(self._name(checkpoint))
        return done

    def download(self, checkpoint: CheckpointId, part: int, parts: int, progress: Callable[[], None]) -> None:
        """Bring one of ``parts`` of a checkpoint's files into the run's folder, verified, all but its manifest.

        Args:
            progress: called after each block.

        Raises:
            CorruptFileError, WrongBytesError: a file is not what was saved, or is not there.
            FetchError, OSError: storage does not answer.
        """
        folder = checkpoint.folder(self._run.checkpoints)
        folder.mkdir(parents=True, exist_ok=True)
        filesystem, root = open_storage(self._folder.location, self._folder.storage)
        fetcher = Fetcher(filesystem)
        try:
            for rank in range(part, self._manifest(checkpoint).world_size, parts):
                if _is_there(folder, rank):
                    continue  # it came before this process was started again
                name = f"{self._name(checkpoint)}/{rank_index(rank)}"
                text = self._folder.read(name)
                index = RankIndex.from_json(parse_json(text, self._folder.url(name)))
                with (folder / rank_file(rank)).open("wb") as file:
                    file.truncate(index.bytes)
                url = f"{root}/{self._name(checkpoint)}/{rank_file(rank)}"
                fetcher.fetch(url, index.xxh3, folder / rank_file(rank), progress)
                with atomic_write(folder / rank_index(rank)) as file:
                    file.write(text)
        finally:
            fetcher.close()

    def download_records(self) -> None:
        """The run's ledger and adjustments, where its folder has lost them. Raises as `download`."""
        for name in self._records():
            if not (self._run.path / name).exists():
                self._download_json(name)

    def finish_download(self, checkpoint: CheckpointId) -> None:
        """After all parts: the manifest. Raises as `download`."""
        self._download_json(f"{self._name(checkpoint)}/{MANIFEST}")

    def set_aside(self, checkpoint: CheckpointId) -> None:
        """A checkpoint is of no use: there it is none any more, and what came of it is removed here."""
        shutil.rmtree(checkpoint.folder(self._run.checkpoints), ignore_errors=True)
        self._folder.rename(f"{self._name(checkpoint)}/{MANIFEST}", f"{self._name(checkpoint)}/{_CORRUPT}")

    def _download_json(self, name: str) -> None:
        text = self._folder.read(name)
        parse_json(text, self._folder.url(name))
        target = self._run.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            file.write(text)

    def _upload(self, checkpoint: CheckpointId, names: dict[str, int]) -> None:
        """All files of it that are not there yet, after the records that go with it."""
        folder = checkpoint.folder(self._run.checkpoints)
        files = sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST)  # the manifest last
        for path in [*self._local_records(), *files]:
            name = str(path.relative_to(self._run.path))
            changes = path == self._run.adjustments
            if changes or names.get(name) != path.stat().st_size:  # others are never written twice
                self._folder.upload(name, path)

    def _local_records(self) -> list[Path]:
        adjustments = [self._run.adjustments] if self._run.adjustments.exists() else []
        return [*sorted(self._run.ledger.glob("step-*.json")), *adjustments]

    def _records(self) -> list[str]:
        names = self._folder.files()
        ledger, adjustments = f"{self._run.ledger.name}/", self._run.adjustments.name
        return [name for name in names if name.startswith(ledger) or name == adjustments]

    def _committed(self, names: dict[str, int]) -> list[CheckpointId]:
        found = [self._parse(name) for name in names if name.endswith(f"/{MANIFEST}")]
        return sorted((c for c in found if c), reverse=True)

    def _unneeded(self, names: dict[str, int], wanted: set[CheckpointId]) -> set[CheckpointId]:
        """Those whose upload was cut off, and those that have just lost their manifest."""
        kept = {self._parse(name) for name in names if name.endswith(f"/{_CORRUPT}")}  # for people to look at
        return {c for c in map(self._parse, names) if c} - kept - wanted

    def _score(self, checkpoint: CheckpointId) -> float | None:
        if checkpoint not in self._scores:
            self._scores[checkpoint] = None
            with suppress(CorruptFileError):
                self._scores[checkpoint] = self._manifest(checkpoint).score
        return self._scores[checkpoint]

    def _manifest(self, checkpoint: CheckpointId) -> Manifest:
        return Manifest.from_json(self._folder.read_json(f"{self._name(checkpoint)}/{MANIFEST}"))

    def _name(self, checkpoint: CheckpointId) -> str:
        return str(checkpoint.folder(self._run.checkpoints).relative_to(self._run.path))

    def _parse(self, name: str) -> CheckpointId | None:
        parts = name.split("/")
        return CheckpointId.parse(parts[1]) if parts[0] == self._run.checkpoints.name and len(parts) > 1 else None


def _is_there(folder: Path, rank: int) -> bool:
    """Whether a rank's files are in ``folder`` already, as they were written."""
    with suppress(CorruptFileError):
        verify_rank(folder, rank)
        return True
    return False
