"""The result of a check."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of the check.
        found: short description.
        fix: recommended action, if any.
        node: host name.
    """

    check: str
    verdict: Verdict
    found: str
    fix: str = ""
    node: str = field(default_factory=socket.gethostname)


def ok(check: str, found: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, fix: str) -> Finding:
    """Return a finding about a working but slow or unsafe setup."""
    return Finding(check, Verdict.WARNING, found, fix)


def failed(check: str, found: str, fix: str) -> Finding:
    """Return a finding with which runs will fail."""
    return Finding(check, Verdict.FAILED, found, fix)


def run_check(check: str, check_function: Callable[[], Finding], fix: str) -> Finding:
    """Run a check; return any exception as a failed finding, so that the other checks still run."""
    try:
        return check_function()
    except Exception as error:
        return failed(check, f"{type(error).__name__}: {error}".splitlines()[0], fix)
