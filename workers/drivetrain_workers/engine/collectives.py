"""The time that a rank waits in collectives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Of DeepSpeed's communication backend, which carries all of its traffic and ours.
_COLLECTIVES = (
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


class CollectiveTimer:
    """Sums up the time that the main thread spends in collectives, including waits for slower peers.

    On GPUs collectives are queued and overlap with computation: only the waits of the CPU for them count here.

    Args:
        backend: DeepSpeed's backend of this process; its methods are wrapped.
    """

    def __init__(self, backend: Any) -> None:
        self._seconds, self._depth = 0.0, 0
        for name in _COLLECTIVES:
            if method := getattr(backend, name, None):
                setattr(backend, name, self._timed(method))

    def take(self) -> float:
        """Return the seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self._counting():
                work = method(*arguments, **options)
            return _Work(work, self._counting) if hasattr(work, "wait") else work

        return timed

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count the time of the outermost collective only: collectives call each other."""
        began = time.perf_counter()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._seconds += time.perf_counter() - began


class _Work:
    """An asynchronous collective; waiting for it counts too."""

    def __init__(self, work: Any, counting: Callable[[], Any]) -> None:
        self._work, self._counting = work, counting

    def wait(self, *arguments: Any) -> Any:
        """Wait for the collective, as torch does."""
        with self._counting():
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
