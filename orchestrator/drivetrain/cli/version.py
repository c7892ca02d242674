"""Versions of what is installed, read without importing it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("ray", "torch", "deepspeed", "mlflow")


def versions() -> Iterator[str]:
    """Yield a line for Drivetrain, one for Python, and one for each important package that is installed."""
    for name in ("drivetrain", None, *_PACKAGES):
        if name is None:
            yield f"Python {platform.python_version()}"
            continue
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            if name == "drivetrain":  # run from a checkout
                yield "drivetrain (not installed)"
