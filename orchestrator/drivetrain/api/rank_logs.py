"""The output of a run's ranks, read from the log files in its folder while they grow."""

from __future__ import annotations

from collections.abc import Iterator

from drivetrain_workers.records.run_folder import RunFolder

_PIECE_BYTES = 1 << 16


class RankLogs:
    """Reads what was added to the logs since it read before.

    Args:
        folder: of the run; it need not have logs yet.
        rank: the only rank to read; None reads all, and every line begins with the name of its rank.
    """

    def __init__(self, folder: RunFolder, rank: int | None) -> None:
        self._folder, self._rank = folder.log(0).parent, rank
        self._offsets: dict[str, int] = {}

    def read(self, last: bool) -> Iterator[bytes]:
        """Yield whole lines, and pieces of very long ones; a line without an end only in the ``last`` read."""
        for path in sorted(self._folder.glob("rank-*.log" if self._rank is None else f"rank-{self._rank}.log")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path.name, 0))
                while piece := file.read(_PIECE_BYTES):
                    at_end = last and len(piece) < _PIECE_BYTES
                    cut = piece.rfind(b"\n") + 1 or (len(piece) if len(piece) == _PIECE_BYTES else 0)
                    whole = piece if at_end else piece[:cut]
                    if not whole:
                        break
                    self._offsets[path.name] = self._offsets.get(path.name, 0) + len(whole)
                    file.seek(self._offsets[path.name])
                    yield whole if self._rank is not None else _named(path.stem, whole)


def _named(name: str, lines: bytes) -> bytes:
    label = f"{name}: ".encode()
    return b"".join(label + line for line in lines.splitlines(keepends=True))
