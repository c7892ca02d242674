"""How long a rank waits in collectives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Of DeepSpeed's communication backend, through which all of its traffic goes, and ours.
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


class CollectiveClock:
    """Adds up the time that the main thread spends in collectives, waiting for slower peers included.

    On GPUs collectives are queued and run beside the computing: only what a rank's CPU waits for them counts here.

    Args:
        backend: DeepSpeed's, of this process; its methods are wrapped.
    """

    def __init__(self, backend: Any) -> None:
        self._seconds, self._depth = 0.0, 0
        for name in _COLLECTIVES:
            if method := getattr(backend, name, None):
                setattr(backend, name, self._timed(method))

    def take(self) -> float:
        """Seconds since it was asked last."""
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
        """Collectives call each other: the outermost counts."""
        began = time.perf_counter()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._seconds += time.perf_counter() - began


class _Work:
    """A collective that goes on; waiting for it counts too."""

    def __init__(self, work: Any, counting: Callable[[], Any]) -> None:
        self._work, self._counting = work, counting

    def wait(self, *arguments: Any) -> Any:
        """As torch's."""
        with self._counting():
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
