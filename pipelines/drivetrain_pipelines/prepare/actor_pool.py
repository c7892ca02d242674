"""The preprocessing actors of one preparation, on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import ray
import ray.exceptions

from drivetrain_pipelines.actors.ray_failures import in_words
from drivetrain_pipelines.errors import DrivetrainError, PrepareError
from drivetrain_pipelines.prepare.preprocessor import Preprocessor

_POLL_INTERVAL_S = 1.0
_STALL_TIMEOUT_S = 4 * 3600.0  # a chunk of an hour is slow but possible


class ActorPool:
    """Distributes calls over actors, which start with the first call.

    Ray restarts an actor that dies and repeats its call, which is idempotent.

    Args:
        size: number of actors.
        arguments: of `Preprocessor`.
    """

    def __init__(self, size: int, *arguments: Any) -> None:
        self._size, self._arguments = size, arguments
        self._actors: list[Any] = []
        self._arriving: dict[Any, Any] = {}
        self._idle: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def map(
        self,
        method: str,
        calls: Mapping[int, tuple[Any, ...]],
        on_result: Callable[[int, Any], None],
        on_wait: Callable[[bool], object],
    ) -> None:
        """Call a method of the actors, one call at a time per actor, which bounds memory.

        Args:
            calls: arguments by number.
            on_result: called with the number and the result of each call, in any order.
            on_wait: called every second, with whether a call is running: no CPU may be free. What it raises ends the
                calls.

        Raises:
            UserCodeError: the job's code failed.
            InputError, PrepareError: a call failed, no call has ended for hours, or an actor could not be kept alive.
        """
        shared = {id(each): ray.put(each) for arguments in calls.values() for each in arguments[1:]}
        pending = list(calls.items())[::-1]
        running: dict[Any, tuple[int, Any]] = {}
        ended_at = time.monotonic()
        try:
            self._start(len(calls))
            while pending or running:
                while pending and self._idle:
                    number, (first, *others) = pending.pop()
                    actor = self._idle.pop()
                    call = getattr(actor, method).remote(first, *(shared[id(each)] for each in others))
                    running[call] = (number, actor)
                # On a small or busy cluster some actors start later, or never.
                done, _ = ray.wait([*running, *self._arriving], timeout=_POLL_INTERVAL_S)
                if not done:
                    ended_at = ended_at if running else time.monotonic()
                    _check_stall(ended_at)
                    on_wait(bool(running))
                elif done[0] in self._arriving:
                    self._idle.append(self._arriving.pop(done[0]))
                else:
                    number, actor = running.pop(done[0])
                    on_result(number, ray.get(done[0]))
                    self._idle.append(actor)
                    ended_at = time.monotonic()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DrivetrainError | OSError):
                raise error.cause from None
            raise PrepareError(f"the preparation failed: {in_words(error)}") from error
        except ray.exceptions.RayError as error:
            fix = "Its code may end the process (os._exit), or a chunk may need more memory: reduce data.chunk_bytes."
            raise PrepareError(f"a preprocessing actor could not be kept alive: {in_words(error)}", fix) from error

    def _start(self, calls: int) -> None:
        """Start as many actors as there are calls, at most the size of the pool."""
        # Ray repeats a call without limit after an actor's death (up to three) and after a network failure; an
        # exception of the user's code is still raised.
        actor_class: Any = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=-1)(Preprocessor)
        while len(self._actors) < min(self._size, calls):
            actor = actor_class.remote(*self._arguments)
            self._actors.append(actor)
            self._arriving[actor.ping.remote()] = actor


def _check_stall(ended_at: float) -> None:
    if time.monotonic() - ended_at > _STALL_TIMEOUT_S:
        problem = f"no chunk was finished within {_STALL_TIMEOUT_S / 3600:g} hours"
        raise PrepareError(problem, "A function of the job may never return; or reduce data.chunk_bytes.")
