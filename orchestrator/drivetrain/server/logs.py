"""The output of ranks as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.api.rank_logs import RankLogs

_POLL_INTERVAL_S = 0.3


async def follow(folder: RunFolder, rank: int | None, done: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield the lines of a run's logs.

    Args:
        folder: of the run.
        rank: the only rank to read; None reads all, and every line begins with the name of its rank.
        done: whether nothing more will be written; called before the last read.
    """
    logs = RankLogs(folder, rank)
    while True:
        last = await asyncio.to_thread(done)
        for piece in logs.read(last):
            yield piece
        if last:
            return
        await asyncio.sleep(_POLL_INTERVAL_S)
