"""What ranks have printed, as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from drivetrain_workers.records.run_folder import RunFolder

_LOOK_S = 0.3
_PIECE_BYTES = 1 << 16


async def follow(folder: RunFolder, rank: int | None, done: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Lines of a run's logs; of all ranks, each line says whose it is.

    Args:
        rank: the one rank of interest; None for all.
        done: whether nothing more will come; asked before the last look.
    """
    at: dict[str, int] = {}
    while True:
        last = await asyncio.to_thread(done)
        for path in sorted(folder.log(0).parent.glob("rank-*.log" if rank is None else f"rank-{rank}.log")):
            with path.open("rb") as file:
                file.seek(at.get(path.name, 0))
                while piece := file.read(_PIECE_BYTES):
                    at_end = last and len(piece) < _PIECE_BYTES
                    cut = piece.rfind(b"\n") + 1 or (len(piece) if len(piece) == _PIECE_BYTES else 0)
                    whole = piece if at_end else piece[:cut]  # a line that is still being written waits
                    if not whole:
                        break
                    at[path.name] = at.get(path.name, 0) + len(whole)
                    file.seek(at[path.name])
                    yield whole if rank is not None else _named(path.stem, whole)
        if last:
            return
        await asyncio.sleep(_LOOK_S)


def _named(name: str, lines: bytes) -> bytes:
    label = f"{name}: ".encode()
    return b"".join(label + line for line in lines.splitlines(keepends=True))
