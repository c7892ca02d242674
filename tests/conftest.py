"""For all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("drivetrain", deadline=None)  # no example is too slow, because shared machines are
settings.load_profile("drivetrain")


@pytest.fixture(scope="session", autouse=True)
def _ray_of_their_own() -> Iterator[None]:
    """Where pytest has several processes, each has a folder for Ray: none finds the cluster of another."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    # a short name, for there is a limit to the length of a socket's
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        yield
