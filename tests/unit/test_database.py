"""The database: creation, concurrent access, SQLite and PostgreSQL."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from drivetrain.database import engine as engine_module
from drivetrain.database.engine import TABLES_REVISION, open_database
from drivetrain.database.tables import Base
from drivetrain.errors import NotFoundError
from drivetrain.runs import store as store_module
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.states import Allocation, Ended, Placing, Progress, Queued, Starting
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.protocol.reasons import Reason
from filelock import FileLock
from sqlalchemy import Connection, text

from tests.postgres import Postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'drivetrain.db'}"
    return request.getfixturevalue("postgres").new_database()  # type: ignore[no-any-return]


def test_migrations_lead_to_the_tables_of_this_version(url: str) -> None:
    with open_database(url).connect() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == TABLES_REVISION
        assert compare_metadata(context, Base.metadata) == []


def test_runs_and_their_history(url: str) -> None:
    store = RunStore(url)
    assert store.create("toy-1", "f", Queued(), "ann", "key", mlflow_uri="sqlite:///m.db")
    assert not store.create("toy-2", "f", Queued(), "ann", "key")
    assert store.create("toy-3", "f", Queued(), "bob", "key")
    assert store.create("toy-4", "f", Queued(), "bob")
    assert store.create("toy-5", "f", Queued(), "bob")
    allocation = Allocation((("node", 2), ("other", 1)), 5.0, 1)
    store.save("toy-1", Placing("/data", allocation), "AllocationGranted()")
    store.update_facts("toy-1", parameters=2)
    found = store.by_key("ann", "key")
    assert found
    assert (found.id, found.state) == ("toy-1", Placing("/data", allocation))
    assert found.facts == RunFacts(mlflow_uri="sqlite:///m.db", parameters=2)
    assert [event for _, event, _ in store.history("toy-1")] == ["AllocationGranted()"]
    store.save_usage({"ann": 0.25}, 9.0)
    store.save_usage({"ann": 0.5, "bob": 0.1}, 10.0)
    assert store.usage() == ({"ann": 0.5, "bob": 0.1}, 10.0)


_WRITTEN = ("parameters", "peak_bytes", "base_bytes")


def _update_often(url: str, name: str) -> None:
    store = RunStore(url)
    for number in range(1, 26):
        store.update_facts("toy-1", **{name: number})
        assert getattr(store.get("toy-1").facts, name) == number


def test_many_processes_open_and_write_at_once(url: str) -> None:
    """The first processes migrate; no process loses the update of another."""
    spawn = multiprocessing.get_context("spawn")
    opening = [spawn.Process(target=RunStore, args=(url,)) for _ in range(3)]
    for process in opening:
        process.start()
    for process in opening:
        process.join()
    assert [process.exitcode for process in opening] == [0, 0, 0]
    RunStore(url).create("toy-1", "f", Queued())
    learning = [spawn.Process(target=_update_often, args=(url, name)) for name in _WRITTEN]
    for process in learning:
        process.start()
    for process in learning:
        process.join()
    assert [process.exitcode for process in learning] == [0, 0, 0]
    assert RunStore(url).get("toy-1").facts == RunFacts(**dict.fromkeys(_WRITTEN, 25))  # type: ignore[arg-type]


def test_a_restarted_server_is_found_again(postgres: Postgres) -> None:
    store = RunStore(postgres.new_database())
    store.create("toy-1", "f", Queued())
    postgres.restart()
    assert store.get("toy-1").id == "toy-1"


def test_a_lock_that_cannot_be_taken_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, and no wait without an end."""
    monkeypatch.setattr(engine_module, "_BUSY_TIMEOUT_S", 0.1)
    with FileLock(tmp_path / "held.db.opening"), pytest.raises(InputError, match="lock"):
        open_database(f"sqlite:///{tmp_path / 'held.db'}")
    (tmp_path / "blocked.db.opening").mkdir()
    with pytest.raises(InputError, match="database URL"):
        open_database(f"sqlite:///{tmp_path / 'blocked.db'}")


def test_what_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    for url in ("nonsense", "postgresql://user:secret@127.0.0.1:1/none", f"sqlite:///{tmp_path}/no/such/folder.db"):
        with pytest.raises(InputError, match="database URL") as caught:
            open_database(url)
        assert "secret" not in str(caught.value)
    newer = f"sqlite:///{tmp_path / 'newer.db'}"
    with open_database(newer).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InputError, match="tables of version 9999"):
        open_database(newer)


def test_the_third_migration_fills_what_runs_are_looked_up_by(url: str) -> None:
    """Runs of an older version are found, and their transitions are counted."""
    engine = open_database(url)
    store = RunStore(url)
    store.create("toy-1", "f", Queued())
    store.save("toy-1", Placing("/data", Allocation()), "AllocationGranted()")
    store.save("toy-1", Starting("/data", Allocation(), progress=_after_a_failure(1)), "RankLost()")
    store.save("toy-1", Starting("/data", Allocation(), progress=_after_a_failure(2)), "RankLost()")
    store.save("toy-1", Ended(Reason.CANCELLED, progress=_after_a_failure(2)), "CancelRequested()")
    store.create("toy-2", "f", Ended(Reason.CANCELLED))
    store.create("toy-3", "f", Queued(), released=True)
    store.update_facts("toy-1", released=True, dataset="/data")
    names = ("admissions", "recoveries", "ends")
    expected = [store.counters(name) for name in names]
    assert expected == [{"": 1}, {"rank_killed": 2}, {"cancelled": 1}]
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE counters"))
        _back_to_the_second_migration(connection)
    again = RunStore(url)
    assert [again.counters(name) for name in names] == expected
    assert {record.id for record in again.unended()} == {"toy-2", "toy-3"}
    assert [record.id for record in again.page(phase="ended", ended=True)] == ["toy-1"]
    assert again.datasets() == {"/data"}


def _after_a_failure(restarts: int) -> Progress:
    return Progress(failures={Reason.RANK_KILLED: restarts}, restarts=restarts)


def _back_to_the_second_migration(connection: Connection) -> None:
    for name in ("newest", "newest_unended", "newest_of_user", "newest_of_phase", "newest_of_fingerprint", "dataset"):
        connection.execute(text(f"DROP INDEX ix_runs_{name}"))
    for column in ("phase", "ended", "dataset"):
        connection.execute(text(f"ALTER TABLE runs DROP COLUMN {column}"))
    connection.execute(text('CREATE INDEX ix_runs_user ON runs ("user")'))
    connection.execute(text("CREATE INDEX ix_runs_fingerprint ON runs (fingerprint)"))
    connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))


def test_runs_are_paged_newest_first(url: str) -> None:
    store = RunStore(url)
    for number in range(7):
        ended = {"released": True} if number % 2 else {}
        store.create(f"toy-{number}", f"f{number % 2}", Ended(Reason.COMPLETED), ("ann", "bob")[number % 2], **ended)
    store.save("toy-6", Queued(), "resumed by the user")

    def ids(records: Iterable[RunRecord]) -> str:
        return "".join(record.id.removeprefix("toy-") for record in records)

    assert ids(store.page()) == ids(store.iterate()) == "6543210"
    assert ids(store.page(3)) == "654"
    assert ids(store.page(3, "toy-4")) == "321"
    assert ids(store.page(3, "toy-0")) == ""
    assert ids(store.page(2, "toy-4", user="ann")) == "20"
    assert ids(store.page(phase="queued")) == "6"
    assert ids(store.page(2, phase="ended")) == "54"
    assert ids(store.page(ended=True)) == "531"
    assert ids(store.unended()) == "6420"
    assert ids(store.unended(fingerprint="f1")) == ""
    assert ids(store.iterate(fingerprint="f1")) == "531"
    store.claim("toy-2", "session")
    assert ids(store.unended(session="session")) == "2"
    with pytest.raises(InputError, match="toy-9"):
        store.page(3, "toy-9")


def test_runs_of_the_same_moment_are_paged_once_each(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module.time, "time", lambda: 5.0)
    monkeypatch.setattr(store_module, "_PAGE", 2)
    store = RunStore(url)
    for name in "cabde":
        store.create(name, "f", Queued())
    assert [record.id for record in store.iterate()] == list("edcba")


def test_a_prefix_is_looked_up_in_the_index(url: str) -> None:
    """Ids with capitals, punctuation and non-ASCII letters: each is found by every unique prefix."""
    store = RunStore(url)
    ids = ["toy-1", "toy-10", "Toy-2", "toy_3", "toy.4", "tor-5", "toz-6", "töy-7"]
    for name in ids:
        store.create(name, "f", Queued())
    for name in ids:
        for length in range(1, len(name) + 1):
            alike = [other for other in ids if other.startswith(name[:length])]
            if len(alike) == 1 or name[:length] in ids:
                assert store.get(name[:length]).id == (name[:length] if name[:length] in ids else name)
            else:
                with pytest.raises(InputError, match=", ".join(sorted(alike))):
                    store.get(name[:length])
    with open_database(url).connect() as connection:
        explain = "EXPLAIN QUERY PLAN"
        if connection.dialect.name == "postgresql":  # otherwise it scans such a small table completely
            connection.execute(text("SET enable_seqscan = off"))
            explain = "EXPLAIN"
        plan = connection.execute(text(f"{explain} SELECT id FROM runs WHERE id >= 'toy' AND id < 'toz'")).all()
    assert "Index Cond" in str(plan) or "SEARCH runs USING COVERING INDEX" in str(plan)


def test_the_message_about_an_unknown_run_stays_short(url: str) -> None:
    store = RunStore(url)
    for number in range(12):
        store.create(f"toy-{number:02}", "f", Queued())
    for wrong in ("nothing", "toy"):
        with pytest.raises((InputError, NotFoundError)) as caught:
            store.get(wrong)
        assert str(caught.value).count("toy-") == 10
