"""Paths with any characters: as locations of files, as URLs of databases, as the home of a run."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from drivetrain.database.engine import open_database
from drivetrain.database.files import file_of
from drivetrain.home import Home
from drivetrain.runs.store import RunStore
from drivetrain.tracking.embedded import make_database
from drivetrain.tracking.mlflow_client import MlflowRun, Wanted
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.folder import StorageFolder, open_storage
from drivetrain_pipelines.storage.paths import is_local, local_path, sqlite_file, sqlite_url
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.runs import home_in, make_run

ODD = "a b?c%20d#e*f[g]::h://i&mode=ro\n~é中\t'\"\\"
_PIECES = st.sampled_from(
    [*" ?%#*[]:&=~\n\t'\"\\", "::", "%20", "%3F", "?uri=true", "file:", "s3:", "é", "中", "a", ".x"]
)
names = st.lists(_PIECES, min_size=1, max_size=8).map("".join).filter(lambda name: name not in (".", ".."))


@given(names)
@example(ODD.replace("/", ""))
@settings(deadline=None)
def test_files_are_written_and_read_below_any_path(name: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = StorageFolder(f"{root}/{name}")
        assert is_local(folder.location)
        folder.write("one/file", b"content")
        folder.rename("one/file", "one/other")
        folder.upload("copy", Path(folder.location) / "one" / "other")
        assert folder.read("copy") == b"content"
        assert folder.files() == {"copy": 7, "one/other": 7}
        assert folder.size("one/other") == 7
        assert [path.name for path in Path(root).iterdir()] == [name]
        folder.remove("one")
        assert folder.files() == {"copy": 7}


@given(names)
@example("?x")
@settings(deadline=None, max_examples=30)
def test_a_database_is_the_file_of_its_url(name: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, name)
        url = sqlite_url(path)
        assert sqlite_file(url) == path
        engine = open_database(url)
        assert file_of(engine) == path
        engine.dispose()
        assert {file.name.removeprefix(name) for file in Path(root).iterdir()} >= {""}
        assert all(file.name.startswith(name) for file in Path(root).iterdir())  # lock files, too
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT count(*) FROM runs").fetchone() == (0,)


@given(names)
def test_a_path_is_read_from_its_file_url(name: str) -> None:
    path = Path("/nowhere", name)
    assert local_path(path.as_uri()) == path
    assert local_path(str(path)) == path
    assert is_local(path.as_uri())


def test_what_exists_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_local("s3://bucket/key")
    assert not is_local("memory://x")
    Path("s3:", "bucket").mkdir(parents=True)
    assert is_local("s3://bucket")
    Path("a%20b").touch()
    assert local_path(f"file://{tmp_path}/a%20b") == tmp_path / "a%20b"
    assert local_path(f"file://localhost{tmp_path}/c%20d") == tmp_path / "c d"
    filesystem, path = open_storage("memory://x", StorageSpec())
    assert (filesystem.protocol, path) == ("memory", "/x")


@pytest.mark.parametrize("url", ["postgresql://host/x", "sqlite://", "sqlite:///:memory:", "http://host:///x", "/a"])
def test_other_urls_name_no_file(url: str) -> None:
    assert sqlite_file(url) is None


@pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted:UserWarning")  # MLflow's classes
def test_a_home_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, and MLflow's database and artifacts, are in it and nowhere else."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ODD.replace("/", "")
    home = home_in(folder, monkeypatch)
    assert Home.from_environment() == home
    make_run(home, "toy-1")
    assert [record.id for record in RunStore(home.database_url).page(9)] == ["toy-1"]
    make_database(folder / "mlflow.db", home.mlflow_artifacts)
    run = MlflowRun(home.mlflow_uri, Wanted("toys", home.mlflow_artifacts, "toy-1", "ann", 1000.0))
    (folder / "notes").write_text("kept")
    run.ship(
        [
            {"op": "artifact", "path": str(folder / "notes")},
            {"op": "dataset", "folder": str(folder), "name": "d", "version": "1"},
        ]
    )
    assert [file.read_text() for file in home.mlflow_artifacts.rglob("notes")] == ["kept"]
    assert list(tmp_path.iterdir()) == [folder]
    for name in [name for name in os.environ if name not in before and name.startswith("MLFLOW_")]:
        del os.environ[name]
