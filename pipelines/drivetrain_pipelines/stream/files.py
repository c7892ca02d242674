"""Where a reader gets its shard files from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from drivetrain_pipelines.storage.shards import Shard


class ShardFiles(Protocol):
    """Files of a split's shards, by number."""

    @property
    def ahead_bytes(self) -> int:
        """How many bytes of shards should be known to be needed soon."""

    def expect(self, numbers: Sequence[int]) -> None:
        """These will be asked for soon, in this order."""

    def acquire(self, number: int) -> Path:
        """A shard as a local file, which stays until it is released. May wait."""

    def release(self, number: int) -> None:
        """The file is not mapped any more."""

    def discard(self, number: int) -> None:
        """An acquired file is not what was written: release it, and fetch it anew where there is something to fetch."""

    def stop(self) -> None:
        """Let nobody wait in `acquire` any longer."""

    def close(self) -> None:
        """Stop, and release all."""


class LocalFiles:
    """Shards that lie on this machine or on a file system that it mounts.

    Args:
        folder: holds the files.
        shards: of the split.
    """

    ahead_bytes = 0

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._paths = [folder / shard.file for shard in shards]

    def expect(self, numbers: Sequence[int]) -> None:
        """Nothing to fetch."""

    def acquire(self, number: int) -> Path:
        """See `ShardFiles`."""
        return self._paths[number]

    def release(self, number: int) -> None:
        """Nothing is held."""

    def discard(self, number: int) -> None:
        """There is no other copy."""

    def stop(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Nothing is held."""
