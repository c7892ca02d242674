"""Missing and wrong credentials of object storage. They are an error of the input: another attempt does not help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drivetrain_pipelines.errors import DrivetrainError, InputError

# By name, because each storage has its own client, which need not be installed here.
_MISSING = {"NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError", "DefaultCredentialsError"}
_INVALID = {
    "ProfileNotFound",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "SSOTokenLoadError",
    "UnauthorizedSSOTokenError",
    "RefreshError",
    "ClientAuthenticationError",
}
_REFUSED = {  # codes of S3
    "403",
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_ALLOWED = "credentials that may use it"
_FIX = (
    "Keys of S3 are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, or in the profile that "
    "storage.profile names; public data needs storage.anonymous: true."
)


def access_problem(url: str, error: BaseException) -> InputError | None:
    """Return an exception of a storage client, or of its cause, as an error of the credentials, if it is one.

    Args:
        url: what was to be read or written.
    """
    if isinstance(error, DrivetrainError):
        return None  # it is known already what it is
    cause: BaseException | None = error
    while cause is not None:
        if given := _given(cause):
            return InputError(url, given, _ALLOWED, _FIX)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, PermissionError) and "://" in url and not url.startswith("file://"):
        return InputError(url, f"credentials that were refused ({error})", _ALLOWED, _FIX)
    return None


@contextmanager
def accessing(url: str) -> Iterator[None]:
    """Turn the exceptions of a block that concern credentials into `InputError`."""
    try:
        yield
    except Exception as error:
        if problem := access_problem(url, error):
            raise problem from error
        raise


def _given(error: BaseException) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split())[:200]
    if kinds & _MISSING:
        return f"no credentials ({text})"
    if kinds & _INVALID:
        return f"credentials that cannot be used ({text})"
    response = getattr(error, "response", None)
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
    return f"credentials that were refused ({code}: {text})" if code in _REFUSED else ""
