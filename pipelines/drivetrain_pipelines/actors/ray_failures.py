"""Ray's errors in the words of users: what has happened to the process that was asked."""

from __future__ import annotations

from ray import exceptions as ray

from drivetrain_pipelines.user_code import describe

# The first match counts; subclasses come first.
_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (ray.OutOfMemoryError, "its process was ended because the node ran out of memory"),
    (ray.ActorUnavailableError, "its node does not respond"),
    (ray.NodeDiedError, "its node died"),
    (ray.RayActorError, "its process died"),
    (ray.WorkerCrashedError, "its process died"),
    (ray.LocalRayletDiedError, "Ray's daemon on this node died"),
    (ray.GetTimeoutError, "it did not respond in time"),
    (ray.OutOfDiskError, "the disk of its node is full"),
    (ray.ObjectStoreFullError, "the shared memory of its node is full"),
    (ray.ObjectLostError, "its answer was lost"),
    (ray.UnserializableException, "its exception cannot be transferred"),
    (ray.TaskPlacementGroupRemoved, "its resources were released"),
    (ray.ActorPlacementGroupRemoved, "its resources were released"),
    (ray.TaskUnschedulableError, "no node has the resources for it"),
    (ray.ActorUnschedulableError, "no node has the resources for it"),
    (ray.RuntimeEnvSetupError, "its environment could not be set up"),
    (ray.AuthenticationError, "the cluster refused the token"),
    (ray.RpcError, "the cluster does not respond"),
)


def in_words(error: BaseException) -> str:
    """Return what an exception means, in one line without Ray's own text; type and text of any other exception."""
    if isinstance(error, ray.RayTaskError):
        return describe(error.cause)
    if not isinstance(error, ray.RayError):
        return describe(error)
    if isinstance(error, ray.RayActorError) and error.actor_init_failed:
        return f"its process could not start: {_line(error, -1)}"  # the error of its constructor
    known = next((meaning for kind, meaning in _MEANINGS if isinstance(error, kind)), "")
    return known or f"Ray has failed: {_line(error, 0)}"


def _line(error: BaseException, number: int) -> str:
    lines = str(error).strip().splitlines()
    return lines[number].strip()[:500] if lines else type(error).__name__
