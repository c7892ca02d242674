"""The backends of collectives: the backend of each device, and how to recognize its errors. Add new backends here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from drivetrain_pipelines.storage.paths import is_local, local_path
from torch.distributed.constants import default_pg_timeout


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
    if is_local(rendezvous):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"


def init_process_group(
    backend: CollectiveBackend, rendezvous: str, rank: int, world_size: int, timeout: timedelta | None = None
) -> None:
    """Join the process group of a rendezvous, see `Generation.rendezvous`."""
    method: dict[str, Any] = {"init_method": rendezvous}
    if is_local(rendezvous):  # as a URL, a path could not contain `?` or `#`
        store = dist.FileStore(str(local_path(rendezvous)), world_size)  # type: ignore[attr-defined]
        store.set_timeout(timeout or default_pg_timeout)
        method = {"store": store}
    dist.init_process_group(backend.name, rank=rank, world_size=world_size, timeout=timeout, **method)
