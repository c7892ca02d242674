"""The Ray cluster that is joined by default."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from drivetrain.api import session


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file in which `ray start` stores its address."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_one_that_listens_is_joined(left: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        left.write_text(f"{address}\n")
        assert session._cluster_of_this_machine() == address
    assert session._cluster_of_this_machine() is None  # it was killed


@pytest.mark.parametrize("content", [None, "", "nonsense", "127.0.0.1:port"])
def test_without_an_address_there_is_none(left: Path, content: str | None) -> None:
    if content is not None:
        left.write_text(content)
    assert session._cluster_of_this_machine() is None
