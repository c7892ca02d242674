"""Settings for all tests: no deadline for examples, separate Ray files per process, a report of skipped tests."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("drivetrain", deadline=None)
settings.load_profile("drivetrain")


@pytest.fixture(scope="session", autouse=True)
def _places_of_ray() -> Iterator[None]:
    """Isolate commands that look for the machine's Ray cluster from other tests that run at the same time."""
    folder = Path(tempfile.mkdtemp(prefix="dt-", dir="/tmp"))  # the paths of Ray's sockets must be short
    token = folder / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _working_directory_and_import_path() -> Iterator[None]:
    """Restore what the code of a job changes that a test runs in this process."""
    folder, path = Path.cwd(), [*sys.path]
    yield
    os.chdir(folder)
    sys.path[:] = path


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print one last line: the number of skipped tests with the reasons."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not isinstance(reporter, pytest.TerminalReporter):
        return  # a worker process of pytest-xdist; its controller reports
    skipped = Counter(reason_of(report) for report in reporter.stats.get("skipped", []))
    reasons = "; ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
    reporter.write_line(f"{sum(skipped.values())} skipped: {reasons}" if reasons else "none skipped")


def reason_of(report: pytest.TestReport) -> str:
    """Return the reason for a skip, from its mark or call."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")
