"""Interruption notices of clouds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from drivetrain.cloud import notices
from drivetrain.cloud.notices import CLOUDS, check_cloud, wait_for_notice
from drivetrain_pipelines.errors import InputError

from tests.metadata_service import give_notice, service


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_POLL_INTERVAL_S", 0.01)


@pytest.fixture
def notice(tmp_path: Path) -> Path:
    return tmp_path / "notice"


@pytest.fixture
def server(notice: Path) -> Iterator[ThreadingHTTPServer]:
    with service(notice) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def metadata(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def at_looks(acts: dict[int, Callable[[], None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Perform actions between polls, by the number of the poll."""
    looks = iter(range(1, 1000))

    def sleep(_: float) -> None:
        acts.get(next(looks), lambda: None)()

    # Of this module only: threads of other tests may sleep, too.
    monkeypatch.setattr(notices, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_notice_has_the_remaining_time(
    cloud: str, notice: Path, metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_looks({3: lambda: give_notice(notice, datetime.now(UTC) + timedelta(seconds=60))}, monkeypatch)
    left = wait_for_notice(cloud, metadata)
    assert left == 30 if cloud == "gcp" else 50 < left < 60


def test_a_notice_that_came_late_leaves_no_time(notice: Path, metadata: str) -> None:
    give_notice(notice, datetime.now(UTC) - timedelta(seconds=60))
    assert wait_for_notice("aws", metadata) == 0
    assert wait_for_notice("azure", metadata) == 0


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("answer", [(503, ""), (200, "<html>"), (200, "{}")])
@pytest.mark.parametrize("away_at", [0, 2])
def test_an_unavailable_service_is_retried(
    cloud: str,
    answer: tuple[int, str],
    away_at: int,
    notice: Path,
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before and after its first answer."""

    def away() -> None:
        server.instead = answer  # type: ignore[attr-defined]

    def back() -> None:
        server.instead = None  # type: ignore[attr-defined]
        give_notice(notice, datetime.now(UTC) + timedelta(seconds=60))

    if not away_at:
        away()
    at_looks({away_at: away, 4: back}, monkeypatch)
    assert 0 < wait_for_notice(cloud, f"http://127.0.0.1:{server.server_port}") < 61


def test_where_no_cloud_answers_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_FIRST_ANSWER_TIMEOUT_S", 0.0)
    with pytest.raises(InputError, match=r"--on-notice: got gcp; .*cloud of this machine"):
        wait_for_notice("gcp", "http://127.0.0.1:9")


def test_an_unknown_cloud_is_an_error() -> None:
    with pytest.raises(InputError, match="aws, gcp, azure"):
        check_cloud("alibaba")
