"""What the errors of MLflow mean."""

from __future__ import annotations

from collections.abc import Iterator

import requests
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from drivetrain.tracking.tracking_uri import without_credentials

_LENGTH = 300  # of a reason
_STATEMENT, _BACKGROUND = "[SQL:", "(Background on this error"  # which SQLAlchemy adds to errors of a database
_OUTAGES = {
    codes.ErrorCode.Name(code)
    for code in (
        codes.CUSTOMER_UNAUTHORIZED,
        codes.UNAUTHENTICATED,
        codes.PERMISSION_DENIED,
        codes.REQUEST_LIMIT_EXCEEDED,
        codes.RESOURCE_EXHAUSTED,
        codes.TEMPORARILY_UNAVAILABLE,
        codes.DEADLINE_EXCEEDED,
    )
}
_REFUSALS = {
    codes.ErrorCode.Name(code)
    for code in (
        codes.INVALID_PARAMETER_VALUE,
        codes.BAD_REQUEST,
        codes.RESOURCE_ALREADY_EXISTS,
        codes.NOT_IMPLEMENTED,
    )
}
_ABSENT = codes.ErrorCode.Name(codes.RESOURCE_DOES_NOT_EXIST)  # any web server answers 404, only MLflow names this


def is_outage(error: Exception) -> bool:
    """Check whether the whole server is the reason: no connection, no permission, too many requests."""
    if isinstance(error, MlflowException) and error.error_code in _OUTAGES:
        return True
    return any(isinstance(each, requests.RequestException) for each in _causes(error))


def is_refusal(error: Exception) -> bool:
    """Check whether the same call can never succeed."""
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    return isinstance(error, ValueError | TypeError | OverflowError | KeyError)  # raised before anything was sent


def is_absent(error: Exception) -> bool:
    """Check whether the server does not have the object of the call."""
    return isinstance(error, MlflowException) and error.error_code == _ABSENT


def reason_of(error: Exception, uri: str = "") -> str:
    """Return the reason in one line. Args: ``uri``: of the server, for an error of the connection."""
    for cause in _causes(error):
        if isinstance(cause, requests.RequestException) and uri:
            return f"{without_credentials(uri)} does not respond{_detail(cause)}"
    said = str(error).partition(_STATEMENT)[0].partition(_BACKGROUND)[0]
    return " ".join(said.split())[:_LENGTH] or type(error).__name__


def _detail(error: BaseException) -> str:
    """Return what the operating system said about a connection."""
    if isinstance(error, requests.Timeout):
        return " in time"
    if isinstance(error, requests.exceptions.RetryError):
        return f" properly: {[*_causes(error)][-1]}"
    said = [each.strerror for each in _causes(error) if isinstance(each, OSError) and each.strerror]
    return f": {said[-1]}" if said else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised for."""
    following: BaseException | None = error
    while following:
        yield following
        reason = following.args[0] if following.args and isinstance(following.args[0], BaseException) else None
        inner = getattr(reason, "reason", reason)  # urllib3 and requests pass the cause as an argument
        following = inner if isinstance(inner, BaseException) else following.__cause__ or following.__context__
