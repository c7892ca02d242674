"""Access to the shard files of a reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from drivetrain_pipelines.storage.shards import Shard


class ShardFiles(Protocol):
    """The files of a split's shards, by number."""

    @property
    def prefetch_bytes(self) -> int:
        """Bytes of shards to request before they are needed."""

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Request shards that are needed soon, in this order."""

    def acquire(self, number: int) -> Path:
        """Return the local path of a shard, which stays until it is released. May wait."""

    def release(self, number: int) -> None:
        """Release a file that is no longer mapped."""

    def discard(self, number: int) -> None:
        """Release an acquired file whose bytes are wrong, and remove the local copy so that it is fetched again."""

    def stop(self) -> None:
        """Make `acquire` stop waiting."""

    def close(self) -> None:
        """Stop, and release all files."""


class LocalFiles:
    """Shards on this machine or on a file system that it mounts.

    Args:
        folder: folder of the files.
        shards: shards of the split.
    """

    prefetch_bytes = 0

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._paths = [folder / shard.file for shard in shards]

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Do nothing: the files are local."""

    def acquire(self, number: int) -> Path:
        """See `ShardFiles`."""
        return self._paths[number]

    def release(self, number: int) -> None:
        """Do nothing: files are not locked."""

    def discard(self, number: int) -> None:
        """Do nothing: there is no other copy."""

    def stop(self) -> None:
        """Do nothing: `acquire` never waits."""

    def close(self) -> None:
        """Do nothing: no resources are held."""
