"""The database: made, migrated from what older versions made, opened by many at once, and on PostgreSQL too."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from drivetrain.database.engine import open_database
from drivetrain.database.tables import Base
from drivetrain.runs.states import Place, Placing, Queued, Training
from drivetrain.runs.store import RunStore
from drivetrain_pipelines.errors import InputError
from sqlalchemy import create_engine, text

from tests.postgres import Postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'drivetrain.db'}"
    return request.getfixturevalue("postgres").new_database()  # type: ignore[no-any-return]


def test_migrations_lead_to_the_tables_of_this_version(url: str) -> None:
    with open_database(url).connect() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == "0002"
        assert compare_metadata(context, Base.metadata) == []


def test_a_database_from_before_migrations_is_taken_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    old = create_engine(url)
    with old.begin() as connection:
        connection.execute(
            text("CREATE TABLE runs (id VARCHAR NOT NULL PRIMARY KEY, fingerprint VARCHAR NOT NULL, "
                 "created FLOAT NOT NULL, session VARCHAR NOT NULL, state JSON NOT NULL, facts JSON NOT NULL)")
        )  # fmt: skip
        connection.execute(text("CREATE INDEX ix_runs_fingerprint ON runs (fingerprint)"))
        connection.execute(
            text("CREATE TABLE transitions (id INTEGER NOT NULL PRIMARY KEY, run_id VARCHAR NOT NULL, "
                 "time FLOAT NOT NULL, event VARCHAR NOT NULL, state JSON NOT NULL)")
        )  # fmt: skip
        state = '{"phase": "training", "dataset": "/data", "progress": {"step": 7}}'
        row = {"state": state}
        connection.execute(text("INSERT INTO runs VALUES ('toy-1', 'f', 1.0, 's', :state, '{\"a\": 1}')"), row)
    record = RunStore(url).get("toy-1")
    assert isinstance(record.state, Training)
    assert (record.state.dataset, record.state.progress.step, record.state.place) == ("/data", 7, Place())
    assert (record.user, record.facts) == ("", {"a": 1})


def test_runs_and_their_history(url: str) -> None:
    store = RunStore(url)
    assert store.create("toy-1", "f", Queued(), "ann", "key", a=1)
    assert not store.create("toy-2", "f", Queued(), "ann", "key")
    assert store.create("toy-3", "f", Queued(), "bob", "key")
    assert store.create("toy-4", "f", Queued(), "bob")
    assert store.create("toy-5", "f", Queued(), "bob")
    place = Place((("node", 2), ("other", 1)), 5.0, 1)
    store.save("toy-1", Placing("/data", place), "PlaceGiven()")
    store.learn("toy-1", b=2)
    found = store.by_key("ann", "key")
    assert found
    assert (found.id, found.facts, found.state) == ("toy-1", {"a": 1, "b": 2}, Placing("/data", place))
    assert [event for _, event, _ in store.history("toy-1")] == ["PlaceGiven()"]
    store.remember_usage({"ann": 0.25}, 9.0)
    store.remember_usage({"ann": 0.5, "bob": 0.1}, 10.0)
    assert store.usage() == ({"ann": 0.5, "bob": 0.1}, 10.0)


def _learn_much(url: str, who: str) -> None:
    store = RunStore(url)
    for number in range(25):
        store.learn("toy-1", **{f"{who}-{number}": number})


def test_many_processes_open_and_write_at_once(url: str) -> None:
    """The first ones to come migrate; nothing that one learns is lost to another."""
    spawn = multiprocessing.get_context("spawn")
    opening = [spawn.Process(target=RunStore, args=(url,)) for _ in range(3)]
    for process in opening:
        process.start()
    for process in opening:
        process.join()
    assert [process.exitcode for process in opening] == [0, 0, 0]
    RunStore(url).create("toy-1", "f", Queued())
    learning = [spawn.Process(target=_learn_much, args=(url, who)) for who in ("a", "b", "c")]
    for process in learning:
        process.start()
    for process in learning:
        process.join()
    assert len(RunStore(url).get("toy-1").facts) == 75


def test_a_restarted_server_is_found_again(postgres: Postgres) -> None:
    store = RunStore(postgres.new_database())
    store.create("toy-1", "f", Queued())
    postgres.restart()
    assert store.get("toy-1").id == "toy-1"


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    for url in ("nonsense", "postgresql://nobody:secret@127.0.0.1:1/none", f"sqlite:///{tmp_path}/no/such/folder.db"):
        with pytest.raises(InputError, match="database URL") as caught:
            open_database(url)
        assert "secret" not in str(caught.value)
    newer = f"sqlite:///{tmp_path / 'newer.db'}"
    with open_database(newer).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InputError, match="tables of version 9999"):
        open_database(newer)
