"""Lists of runs: `drivetrain list` in a home, and the server's route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drivetrain.accounting.run_account import RunAccountCache
from drivetrain.cli.app import app
from drivetrain.home import Home
from drivetrain.runs.states import Preparing, Queued
from drivetrain.runs.store import RunStore
from drivetrain.server.access import Role, Tokens
from drivetrain.server.app import create_app
from drivetrain.server.dependencies import Parts
from fastapi.testclient import TestClient
from typer.testing import CliRunner


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a home with 55 runs, of which one prepares data."""
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    monkeypatch.delenv("DRIVETRAIN_DATABASE_URL", raising=False)
    monkeypatch.delenv("DRIVETRAIN_SERVER", raising=False)
    found = Home.from_environment()
    store = RunStore(found.database_url)
    for number in range(55):
        store.create(f"toy-{number:02}", "f", Queued(), "ann" if number % 2 else "bob")
    store.save("toy-07", Preparing(), "Admitted()")
    return found


@pytest.mark.parametrize(
    ("options", "oldest", "more"),
    [([], 5, "only the newest 50 are"), (["--limit", "2"], 53, "only the newest 2 are"), (["--all"], 0, ""),
     (["--limit", "55"], 0, "")],
)  # fmt: skip
def test_the_list_of_a_home_says_when_there_is_more(home: Home, options: list[str], oldest: int, more: str) -> None:
    result = CliRunner().invoke(app, ["list", *options])
    assert result.exit_code == 0
    header, *shown = result.stdout.splitlines()
    assert header.split() == ["run", "user", "phase", "step", "age", "reason"]
    assert [line.split()[0] for line in shown] == [f"toy-{n:02}" for n in range(54, oldest - 1, -1)]
    *note, place = result.stderr.splitlines()
    assert place == f"local {home.path}"
    assert [line.startswith(more) for line in note] == [True] * bool(more)


def test_a_server_lists_in_pages(home: Home) -> None:
    store, tokens = RunStore(home.database_url), Tokens(home.database_url)
    secret, _ = tokens.create("ann", Role.VIEWER)
    parts = Parts(None, store, tokens, home, RunAccountCache(home, store))  # type: ignore[arg-type]  # Ray is not used
    with TestClient(create_app(parts)) as client:

        def ask(**wanted: Any) -> list[str]:
            answer = client.get("/v1/runs", params=wanted, headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == 200, answer.text
            return [run["run_id"].removeprefix("toy-") for run in answer.json()]

        assert len(ask()) == 50
        assert ask(limit=3) == ["54", "53", "52"]
        assert ask(limit=3, before="toy-52") == ["51", "50", "49"]
        assert ask(before="toy-00") == []
        assert ask(limit=2, user="ann", before="toy-50") == ["49", "47"]
        assert ask(phase="preparing") == ["07"]
        for wrong in ({"limit": 0}, {"limit": 1001}, {"before": "nothing"}):
            answer = client.get("/v1/runs", params=wrong, headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == 422, answer.text
