"""What a check has found."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """How serious it is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: what was looked at.
        found: in a few words.
        fix: what to do, where something is to be done.
        node: host name.
    """

    check: str
    verdict: Verdict
    found: str
    fix: str = ""
    node: str = field(default_factory=socket.gethostname)


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, fix: str) -> Finding:
    """It works, but not well or not safely."""
    return Finding(check, Verdict.WARNING, found, fix)


def failed(check: str, found: str, fix: str) -> Finding:
    """Runs will fail."""
    return Finding(check, Verdict.FAILED, found, fix)


def run_check(check: str, check_function: Callable[[], Finding], fix: str) -> Finding:
    """A check that may raise anything: what it talks to is not ours, and the other checks are to be told too."""
    try:
        return check_function()
    except Exception as error:
        return failed(check, f"{type(error).__name__}: {error}".splitlines()[0], fix)
