"""Programs from Debian packages for tests."""

from __future__ import annotations

import os
import shutil

import pytest

INSTALL = "install it by `make test-packages`"


def needs(*programs: str, root: bool = False) -> pytest.MarkDecorator:
    """Skip a test where programs are missing, or where it is not run by root."""
    if missing := [program for program in programs if not shutil.which(program)]:
        return pytest.mark.skip(reason=f"no {' nor '.join(missing)} here: {INSTALL}")
    return pytest.mark.skipif(root and os.getuid() != 0, reason="needs root")
