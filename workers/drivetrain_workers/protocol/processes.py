"""Parent and child processes: no process keeps running after its owner has died."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NICENESS = 5


def lower_priority() -> None:
    """Lower the priority of this process below that of the ranks, which leave enough CPU time while they wait.

    Linux keeps both settings per thread, and new threads inherit them. Lowering the priority needs no privileges.
    """
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):  # the thread has ended in the meantime
            os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))  # wait for an idle CPU when waking up


def end_with_parent() -> None:
    """Ask the kernel to send SIGKILL to this process when its parent dies for any reason."""
    parent = os.getppid()
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died between the two calls
        sys.exit(1)
