"""What a result may depend on besides job, code and data."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("drivetrain", "torch", "deepspeed", "numpy", "pyarrow", "ray", "transformers")


def environment() -> dict[str, str]:
    """Versions, by name, of what is installed here."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
