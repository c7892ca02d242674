"""Peak memory of a rank."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

_PAGE = resource.getpagesize()


def resident_bytes() -> int:
    """Return the resident memory of this process with shared pages: the memory of a rank after the fork."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def peak_bytes() -> int:
    """Return the peak so far: on a GPU, of its memory as reported by the driver; otherwise of the host's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
