"""Ties between processes, so that nothing is left running when its owner dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BYSTANDER_NICENESS = 5


def yield_to_training() -> None:
    """Let rank processes go first: they leave gaps enough, waiting for each other, for those who only look on.

    Linux keeps both settings per thread, and new threads inherit them; going down in priority needs no rights.
    """
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.setpriority(os.PRIO_PROCESS, thread, max(_BYSTANDER_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))  # on waking up, wait for a gap


def end_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when its parent dies, however the parent dies."""
    parent = os.getppid()
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died between the two calls
        sys.exit(1)
