"""Checkpoints in object storage: the counterpart of `store` for a run's own folder.

The names are the same, ``manifest.json`` is uploaded last, and every download is verified block by block. Next to the
checkpoints are the ledger and the adjustments: without them a run that has lost its folder could resume, but not
reproduce its steps exactly.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.fetch import Fetcher
from drivetrain_pipelines.storage.folder import StorageFolder, open_storage
from drivetrain_pipelines.storage.json_files import atomic_write, parse_json

from drivetrain_workers.checkpoints.manifest import Manifest, RankIndex
from drivetrain_workers.checkpoints.policy import to_keep
from drivetrain_workers.checkpoints.store import MANIFEST, rank_file, rank_index, scores, verify_rank
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import CheckpointSpec

_CORRUPT = "manifest.corrupt.json"  # the manifest of a checkpoint that could not be loaded
_TIMEOUT_S = 20.0  # the uploader retries for longer, and reports each failure


class RemoteCheckpoints:
    """The checkpoints of one run in storage.

    Args:
        run: local folder of the run.
        spec: checkpoint section of the job; has a ``location``.
    """

    def __init__(self, run: RunFolder, spec: CheckpointSpec) -> None:
        self._run, self._keep = run, spec.keep
        self._folder = StorageFolder(f"{(spec.location or '').rstrip('/')}/{run.path.name}", spec.storage, _TIMEOUT_S)
        self._scores: dict[CheckpointId, float | None] = {}  # of checkpoints whose manifest was read

    @property
    def location(self) -> str:
        """URL of the run's checkpoints."""
        return self._folder.location

    def url(self, checkpoint: CheckpointId) -> str:
        """Return the URL of a checkpoint."""
        return self._folder.url(self._name(checkpoint))

    def committed(self) -> list[CheckpointId]:
        """Return every checkpoint in storage that has a manifest, newest first. Raises OSError."""
        return self._committed(self._folder.files(self._run.checkpoints.name))

    def already_set_aside(self) -> list[CheckpointId]:
        """Return the checkpoints in storage that were set aside, newest first. Raises OSError."""
        names = self._folder.files(self._run.checkpoints.name)
        found = {self._parse(name) for name in names if name.endswith(f"/{_CORRUPT}")}
        return sorted((c for c in found if c), reverse=True)

    def sync(self) -> list[CheckpointId]:
        """Upload checkpoints that should be kept and are missing, newest first; remove superfluous ones. Idempotent.

        Returns:
            The uploaded checkpoints.

        Raises:
            OSError, and other errors of the storage client: a file was rejected for 20 s.
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
                    raise  # the file is missing in storage
                continue  # removed in the meantime, because there are newer ones
            done.append(checkpoint)
        for checkpoint in [c for c in there if c not in wanted]:
            self._folder.remove(f"{self._name(checkpoint)}/{MANIFEST}")  # first: then it is no longer a checkpoint
        for checkpoint in self._unneeded(names, wanted):
            self._folder.remove(self._name(checkpoint))
        return done

    def download(self, checkpoint: CheckpointId, part: int, parts: int, progress: Callable[[], None]) -> None:
        """Download one of ``parts`` of a checkpoint's files into the run's folder and verify it; without the manifest.

        Args:
            progress: called after each block.

        Raises:
            CorruptFileError, WrongBytesError: a file is missing or differs from what was saved.
            FetchError, OSError: storage is unavailable.
        """
        folder = checkpoint.folder(self._run.checkpoints)
        folder.mkdir(parents=True, exist_ok=True)
        filesystem, root = open_storage(self._folder.location, self._folder.storage)
        fetcher = Fetcher(filesystem)
        try:
            for rank in range(part, self._manifest(checkpoint).world_size, parts):
                if _is_complete(folder, rank):
                    continue  # downloaded before this process was restarted
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
        """Download the run's ledger and adjustments if its folder has lost them. Raises as `download`."""
        for name in self._records():
            if not (self._run.path / name).exists():
                self._download_json(name)

    def finish_download(self, checkpoint: CheckpointId) -> None:
        """Download the manifest, after all parts. Raises as `download`."""
        self._download_json(f"{self._name(checkpoint)}/{MANIFEST}")

    def set_aside(self, checkpoint: CheckpointId) -> None:
        """Mark a checkpoint as damaged in storage, and remove its downloaded files."""
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
        """Upload all missing files of a checkpoint, after the records that belong to it."""
        folder = checkpoint.folder(self._run.checkpoints)
        files = sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST)  # the manifest last
        for path in [*self._local_records(), *files]:
            name = str(path.relative_to(self._run.path))
            changes = path == self._run.adjustments
            if changes or names.get(name) != path.stat().st_size:  # other files are never written twice
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
        """Return checkpoints whose upload was interrupted, and those that have just lost their manifest."""
        kept = {self._parse(name) for name in names if name.endswith(f"/{_CORRUPT}")}  # for inspection by users
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


def _is_complete(folder: Path, rank: int) -> bool:
    """Check whether a rank's files are in ``folder`` with the expected content."""
    with suppress(CorruptFileError):
        verify_rank(folder, rank)
        return True
    return False
