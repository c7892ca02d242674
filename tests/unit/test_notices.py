"""A machine learns from its cloud that it is taken back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from drivetrain.cloud import notices
from drivetrain.cloud.notices import wait_for_notice
from drivetrain_pipelines.errors import InputError

from tests.metadata_service import give_notice, service


@pytest.fixture
def notice(tmp_path: Path) -> Path:
    return tmp_path / "notice"


@pytest.fixture
def metadata(notice: Path) -> Iterator[str]:
    with service(notice) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_it_is_told_how_much_time_is_left(
    cloud: str, notice: Path, metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_LOOK_S", 0.05)
    moment = datetime.now(UTC) + timedelta(seconds=60)
    later = threading.Timer(0.5, give_notice, (notice, moment))
    later.start()
    left = wait_for_notice(cloud, metadata)
    assert not later.is_alive()
    assert left == 30 if cloud == "gcp" else 50 < left < 60


def test_a_notice_that_came_late_leaves_no_time(notice: Path, metadata: str) -> None:
    give_notice(notice, datetime.now(UTC) - timedelta(seconds=60))
    assert wait_for_notice("aws", metadata) == 0
    assert wait_for_notice("azure", metadata) == 0


def test_where_no_cloud_answers_it_is_an_error() -> None:
    with pytest.raises(InputError, match=r"--on-notice: got gcp; .*cloud of this machine"):
        wait_for_notice("gcp", "http://127.0.0.1:9")


def test_an_unknown_cloud_is_an_error() -> None:
    with pytest.raises(InputError, match="aws, gcp, azure"):
        wait_for_notice("alibaba")
