"""The preprocessing actors of one preparation, on Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import ray
import ray.exceptions

from drivetrain_pipelines.errors import DrivetrainError, PrepareError
from drivetrain_pipelines.prepare.preprocessor import Preprocessor


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

    def map(self, method: str, calls: Mapping[int, tuple[Any, ...]], on_result: Callable[[int, Any], None]) -> None:
        """Call a method of the actors, one call at a time per actor, which bounds memory.

        Args:
            calls: arguments by number.
            on_result: called with the number and the result of each call, in any order.

        Raises:
            InputError, PrepareError: a call failed, or an actor could not be kept alive.
        """
        shared = {id(each): ray.put(each) for arguments in calls.values() for each in arguments[1:]}
        pending = list(calls.items())[::-1]
        running: dict[Any, tuple[int, Any]] = {}
        try:
            self._start(len(calls))
            while pending or running:
                while pending and self._idle:
                    number, (first, *others) = pending.pop()
                    actor = self._idle.pop()
                    call = getattr(actor, method).remote(first, *(shared[id(each)] for each in others))
                    running[call] = (number, actor)
                # On a small or busy cluster some actors start later, or never.
                (done, *_), _ = ray.wait([*running, *self._arriving])
                if done in self._arriving:
                    self._idle.append(self._arriving.pop(done))
                    continue
                number, actor = running.pop(done)
                on_result(number, ray.get(done))
                self._idle.append(actor)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DrivetrainError):
                raise error.cause from error
            raise PrepareError(f"a preprocessing actor failed: {error.cause!r}") from error
        except ray.exceptions.RayActorError as error:
            raise PrepareError(f"a preprocessing actor could not be kept alive: {error}") from error

    def _start(self, calls: int) -> None:
        """Start as many actors as there are calls, at most the size of the pool."""
        # Ray repeats a call without limit after an actor's death (up to three) and after a network failure; an
        # exception of the user's code is still raised.
        actor_class: Any = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=-1)(Preprocessor)
        while len(self._actors) < min(self._size, calls):
            actor = actor_class.remote(*self._arguments)
            self._actors.append(actor)
            self._arriving[actor.ping.remote()] = actor
