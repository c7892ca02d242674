"""Sentences for files that cannot be read, instead of the errors of the libraries."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from drivetrain_pipelines.errors import PrepareError

REPAIR = "Restore the file, or remove it"
_DAMAGED = (pa.ArrowException, OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, ValueError)


@contextmanager
def readable(url: str, what: str) -> Iterator[None]:
    """Raise `PrepareError`, naming the file, for an error of the library that reads it as ``what``."""
    try:
        yield
    except PrepareError:
        raise
    except OSError as error:
        if error.errno is None or error.strerror is None:
            raise _damaged(url, what, error) from error
        raise PrepareError(f"{url} cannot be read: {error.strerror}", "Check that it exists and may be read") from error
    except _DAMAGED as error:
        raise _damaged(url, what, error) from error


def _damaged(url: str, what: str, error: Exception) -> PrepareError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return PrepareError(f"{url} is not {what}, or is damaged ({reason})", REPAIR)
