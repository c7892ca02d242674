"""Ties between processes, so that nothing is left running when its owner dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BYSTANDER_NICENESS = 5


def yield_to_training() -> None:
    """Let rank processes go first: they leave gaps enough, waiting for each other, for those who only look on."""
    os.nice(max(0, _BYSTANDER_NICENESS - os.nice(0)))  # going up needs no rights, going down would


def end_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when its parent dies, however the parent dies."""
    parent = os.getppid()
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died between the two calls
        sys.exit(1)
