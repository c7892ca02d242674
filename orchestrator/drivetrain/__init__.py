"""Drivetrain: distributed training whose result does not depend on what happens to the machines.

home: the folder of Drivetrain's files on this machine, and the names in it.
private_files: files with secrets, readable only by their owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drivetrain.api.client import Client
    from drivetrain.api.runs import RunSummary, resume, run, validate

__all__ = ["Client", "RunSummary", "resume", "run", "validate"]


def __getattr__(name: str) -> Any:
    """Load the API on first use, because ``drivetrain --help`` must not wait for Ray."""
    if name == "Client":
        from drivetrain.api.client import Client  # here: as below

        return Client
    if name in __all__:
        from drivetrain.api import runs as api  # here: see above

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
