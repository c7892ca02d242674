"""A prepared dataset version, opened for reading: its location and its order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drivetrain_pipelines.order.mixture import SampleOrder
from drivetrain_pipelines.order.permutation import Int64Array
from drivetrain_pipelines.spec import DataSpec, StorageSpec
from drivetrain_pipelines.storage.checksums import content_digest
from drivetrain_pipelines.storage.fetch import Fetcher
from drivetrain_pipelines.storage.folder import StorageFolder, open_storage
from drivetrain_pipelines.storage.shards import Manifest
from drivetrain_pipelines.stream.arena import ShardArena
from drivetrain_pipelines.stream.cache import CachedFiles
from drivetrain_pipelines.stream.columns import Columns
from drivetrain_pipelines.stream.files import LocalFiles, ShardFiles


@dataclass(frozen=True)
class CacheSettings:
    """Where shards of remote datasets are cached on this node, and the limit in bytes per dataset version."""

    folder: Path
    limit_bytes: int


class Dataset:
    """A dataset version.

    Args:
        location: folder or fsspec URL that holds the manifest and the shards.
        storage: access to a URL.
        cache: required for a URL.

    Raises:
        CorruptFileError: there is no valid manifest.
    """

    def __init__(self, location: str, storage: StorageSpec | None = None, cache: CacheSettings | None = None) -> None:
        self.folder, self._cache = StorageFolder(location, storage or StorageSpec()), cache
        self.manifest = Manifest.read(self.folder)

    def open(self, split: str, readers: int = 1) -> tuple[ShardArena, ShardFiles]:
        """Return the rows of a split, none of them mapped yet, and the files to map. The caller closes both.

        Args:
            readers: readers of the split on this node, at about the same pace; they share the cache.
        """
        shards = self.manifest.splits[split]
        return ShardArena(self.manifest.schema, shards), self._files(split, readers)

    def order(self, split: str, weights: Sequence[float], seed: int, lanes: int, window: int) -> SampleOrder:
        """Return the endless shuffled stream over the sources of a split."""
        rows_by_source: dict[int, list[int]] = {}
        for shard in self.manifest.splits[split]:
            rows_by_source.setdefault(shard.stream, []).append(shard.rows)
        return SampleOrder.of(
            list(rows_by_source.values()), [weights[number] for number in rows_by_source], seed, lanes, window
        )

    def training_order(self, data: DataSpec, seed: int) -> SampleOrder:
        """Return the stream of samples that a job trains on."""
        weights = [part.weight for part in data.mixture]
        return self.order("train", weights, seed, data.lanes, data.shuffle_window)

    def read(self, split: str, rows: Int64Array) -> Columns:
        """Read some rows, by their number in the split in manifest order.

        Raises:
            IndexError: there are fewer rows.
        """
        arena, files = self.open(split)
        try:
            first = np.cumsum([0] + [shard.rows for shard in self.manifest.splits[split]])
            shards = np.searchsorted(first, rows, side="right") - 1
            if rows.size and not 0 <= rows.min() <= rows.max() < first[-1]:
                raise IndexError(f"{split} has {first[-1]} rows; requested {rows.min()} to {rows.max()}")
            for number in np.unique(shards).tolist():
                arena.map_shard(number, files.acquire(number))
            index = arena.index(shards, rows - first[shards])
            return arena.gather(index, slice(0, len(rows)), arena.buffers(len(rows)))
        finally:
            arena.close()
            files.close()

    def _files(self, split: str, readers: int) -> ShardFiles:
        shards = self.manifest.splits[split]
        if self.folder.local:
            return LocalFiles(self.folder.local, shards)
        assert self._cache, "a remote dataset needs a cache"
        filesystem, path = open_storage(self.folder.location, self.folder.storage)
        location_digest = content_digest(self.folder.location)
        folder = self._cache.folder / f"{self.manifest.name}-{self.manifest.version}-{location_digest}"
        return CachedFiles(folder, path, shards, Fetcher(filesystem), self._cache.limit_bytes, readers)


def open_dataset(location: str, data: DataSpec) -> Dataset:
    """Open the dataset of a job. Remote shards are cached below ``DRIVETRAIN_CACHE``, or the temporary folder."""
    default = f"{tempfile.gettempdir()}/drivetrain-cache-{os.getuid()}"
    folder = Path(os.environ.get("DRIVETRAIN_CACHE", default))
    return Dataset(location, data.storage, CacheSettings(folder, data.cache_bytes))
