"""The backends of collectives: the backend of each device, and how to recognize its errors. Add new backends here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CollectiveBackend:
    """A backend of `torch.distributed`.

    Attributes:
        name: name in torch.
        error_mark: text in all messages of its errors; torch raises them as `RuntimeError`.
    """

    name: str
    error_mark: str


GLOO = CollectiveBackend("gloo", "gloo")
NCCL = CollectiveBackend("nccl", "NCCL")
_BY_DEVICE = {"cpu": GLOO, "cuda": NCCL}


def backend_of(device: torch.device) -> CollectiveBackend:
    """Return the backend for a device type."""
    return _BY_DEVICE[device.type]


def is_collective_error(message: str) -> bool:
    """Check whether an error message is from a backend."""
    return any(backend.error_mark in message for backend in _BY_DEVICE.values())


def use_loopback_only(rendezvous: str) -> None:
    """Restrict gloo to loopback when the whole gang is on this machine, so that nothing listens on other interfaces."""
    if rendezvous.startswith("file://"):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
