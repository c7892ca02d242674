"""The reasons of failures: whose code raised the exception, then its type; in ranks and in the control plane."""

from __future__ import annotations

import builtins
import inspect
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import torch
import torch.distributed as dist
from drivetrain.coordinator.failures import failure_of
from drivetrain_pipelines.actors.ray_failures import in_words
from drivetrain_pipelines.errors import CorruptFileError, FetchError, InputError, TransformError, UserCodeError
from drivetrain_pipelines.storage.access import access_problem
from drivetrain_pipelines.user_code import guarded, user_code_error
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.rank.failures import classify
from hypothesis import given
from hypothesis import strategies as st

_OWN = {
    InputError("a", "b", "c"): Reason.INPUT,
    TransformError("odd"): Reason.USER_CODE,
    FetchError("s3://b/x", 3, "cut"): Reason.STORAGE,
    CorruptFileError("/x", "odd"): Reason.STORAGE,
    OSError(28, "No space left"): Reason.STORAGE,
    MemoryError(): Reason.OUT_OF_MEMORY,
    torch.OutOfMemoryError("CUDA out of memory"): Reason.OUT_OF_MEMORY,
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"): Reason.OUT_OF_MEMORY,
    RuntimeError("NCCL error: unhandled cuda error, out of memory"): Reason.OUT_OF_MEMORY,
    RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"): Reason.COLLECTIVE,
    dist.DistBackendError("NCCL error: remote process exited"): Reason.COLLECTIVE,
}
_ANYWHERE = (Reason.OUT_OF_MEMORY, Reason.COLLECTIVE)
# Built-in exceptions that are made from one text, and have no special meaning for us.
_PLAIN = [
    kind
    for kind in vars(builtins).values()
    if isinstance(kind, type)
    and issubclass(kind, BaseException)
    and not issubclass(kind, Warning | BaseExceptionGroup | OSError | MemoryError | UnicodeError)
]


def raised(error: BaseException, module: str, file: str) -> BaseException:
    """Return the exception with a traceback whose innermost frame is in this module."""
    error.__traceback__ = error.__cause__ = None  # of an earlier call
    try:
        exec(compile("raise error", file, "exec"), {"__name__": module, "error": error})
    except BaseException as caught:
        caught.__traceback__ = caught.__traceback__ and caught.__traceback__.tb_next
        return caught
    raise AssertionError


@given(st.one_of(st.sampled_from(_PLAIN).map(lambda kind: kind("odd")), st.sampled_from([*_OWN])), st.booleans())
def test_of_a_rank(error: BaseException, named: bool) -> None:
    """The same exception has another reason in the job's code, in ours, and in a library that we have called."""
    code = "/home/ann/job"
    if named:
        with pytest.raises((UserCodeError, MemoryError)) as caught:
            guarded(lambda: raised(error, "model", f"{code}/model.py") and raise_(error), "model.loss", code)()
        in_user_code: Any = caught.value
    else:
        in_user_code = user_code_error(raised(error, "model", f"{code}/model.py"), code)
    own = next((reason for known, reason in _OWN.items() if known is error), None)
    anywhere = own if own in _ANYWHERE else None
    assert classify(in_user_code) is (anywhere or Reason.USER_CODE)
    ours = raised(error, "drivetrain_workers.rank.loop", "/lib/drivetrain_workers/rank/loop.py")
    assert user_code_error(ours, code) is None
    assert classify(ours) is (own or Reason.INTERNAL)
    library = raised(error, "torch.optim", "/lib/torch/optim.py")
    assert user_code_error(library, code) is None
    assert classify(library) is (own or Reason.USER_CODE)  # it runs the graph of the job with its settings


def raise_(error: BaseException) -> None:
    raise error


@given(st.sampled_from(_PLAIN).map(lambda kind: kind("odd")))
def test_an_unknown_error_of_the_control_plane_is_our_own(error: BaseException) -> None:
    reason, text = failure_of(error)
    assert reason is Reason.INTERNAL
    assert text.startswith(type(error).__name__)


def _kinds() -> list[type[Exception]]:
    found = [kind for kind in vars(ray.exceptions).values() if inspect.isclass(kind)]
    return [kind for kind in found if issubclass(kind, ray.exceptions.RayError)]


@pytest.mark.parametrize("kind", _kinds(), ids=lambda kind: kind.__name__)
def test_what_ray_raises_is_said_in_words(kind: type[Exception]) -> None:
    """In one line, without its traceback, its links and its names of classes."""
    error = kind.__new__(kind)
    text = "The actor died unexpectedly\nTask failed. See https://docs.ray.io\n\x1b[36mray::f()"
    try:
        kind.__init__(error, text)
    except Exception:  # it is made from something else
        Exception.__init__(error, text)
    error.cause = KeyError("x")  # type: ignore[attr-defined]
    error._actor_init_failed = False  # type: ignore[attr-defined]
    said = in_words(error)
    assert len(said.splitlines()) == 1
    assert "ray::" not in said
    assert "docs.ray.io" not in said
    assert "Task failed" not in said


def test_the_cause_in_an_actor_is_what_is_said() -> None:
    cause = OSError(2, "No such file", "x.csv")
    error = ray.exceptions.RayTaskError("f", "Traceback of Ray", cause)
    assert in_words(error) == "FileNotFoundError: [Errno 2] No such file: 'x.csv'"
    assert in_words(cause) == in_words(error)


def test_a_denied_local_file_is_no_matter_of_credentials(tmp_path: Path) -> None:
    assert access_problem(str(tmp_path), PermissionError(13, "Permission denied")) is None
    assert access_problem("file:///x", PermissionError(13, "Permission denied")) is None
    assert access_problem("s3://b/x", PermissionError("Access Denied"))
    assert access_problem("s3://b/x", UserCodeError("model.loss", "NoCredentialsError: none")) is None
