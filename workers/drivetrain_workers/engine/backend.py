"""The backends of collectives: which one a device uses, and how its errors are recognized. A new one is added here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CollectiveBackend:
    """A backend of `torch.distributed`.

    Attributes:
        name: as torch has it.
        error_mark: what every message of its errors holds; torch raises them as `RuntimeError`.
    """

    name: str
    error_mark: str


GLOO = CollectiveBackend("gloo", "gloo")
NCCL = CollectiveBackend("nccl", "NCCL")
_BY_DEVICE = {"cpu": GLOO, "cuda": NCCL}


def backend_of(device: torch.device) -> CollectiveBackend:
    """Return the backend of a kind of device."""
    return _BY_DEVICE[device.type]


def is_collective_error(message: str) -> bool:
    """Return whether a message is a backend's."""
    return any(backend.error_mark in message for backend in _BY_DEVICE.values())


def stay_on_this_machine(rendezvous: str) -> None:
    """Keep gloo on loopback where the whole gang is on this machine: nothing listens beyond it."""
    if rendezvous.startswith("file://"):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
