"""Removal of dataset versions while others are prepared."""

from __future__ import annotations

from pathlib import Path

import pytest
from drivetrain.api.datasets import remove
from drivetrain.home import Home
from drivetrain_pipelines.prepare.prepare import lock_of


def test_a_version_that_is_being_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    home = Home.from_environment()
    folders = [home.datasets / "words" / version for version in ("1", "2")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    home.downloads.mkdir(exist_ok=True)
    with lock_of(home.downloads, "words", "1"):
        remove(folders)
    assert [folder.exists() for folder in folders] == [True, False]
    remove(folders[:1])
    assert not folders[0].exists()
