"""Standard streams that are closed, full, or of an encoding that lacks a character."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys

from drivetrain.cli.errors import FAILED, describe

_ESCAPES = "drivetrain_escapes"


def prepare_streams() -> None:
    """Open streams that are closed, and write a character that the terminal's encoding lacks as in JSON."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next file that is opened would be a standard stream
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    codecs.register_error(_ESCAPES, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPES)


def finish_output(code: int) -> int:
    """Write what is buffered for stdout; return the exit code, which is that of a failure when it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        discard_output()
        if error.errno != errno.EPIPE:
            print(f"error: {describe(error)}", file=sys.stderr)
        return code or FAILED
    return code


def discard_output() -> None:
    """Discard what is buffered for stdout: Python would try again to write it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end
