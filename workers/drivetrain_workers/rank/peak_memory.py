"""The most memory that a rank has had."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

_PAGE = resource.getpagesize()


def resident_bytes() -> int:
    """Of this process, shared pages included: what a rank has when it has just been forked."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def peak_bytes() -> int:
    """The most so far: on a GPU, of its memory as the driver sees it; else of the host's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
