from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from drivetrain.api.compare import compare
from drivetrain.home import Home
from drivetrain.runs.states import Queued
from drivetrain.runs.store import RunStore
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId

from tests.unit.step_records import step_record


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    return Home.from_environment()


def make(
    home: Home,
    run: str,
    losses: list[float],
    sizes: list[int],
    code: str,
    version: str | None = "v1",
    data: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    folder = home.run(run)
    folder.code.mkdir(parents=True)
    (folder.code / "model.py").write_text(code)
    folder.job_resolved.write_text(json.dumps({"seed": 1, "data": data or {}, "training": settings}))
    folder.environment.write_text(json.dumps({"torch": settings.get("torch", "2.13.0")}))
    records = [
        step_record(number + 1, loss=loss, world_size=size)
        for number, (loss, size) in enumerate(zip(losses, sizes, strict=True))
    ]
    ledger.write(folder.ledger, CheckpointId(len(records), 1), records)
    RunStore(home.database_url).create(run, "", Queued(), dataset_version=version, eval_loss=losses[-1])


def test_what_differs(home: Home) -> None:
    make(home, "one", [3.0, 2.0, 1.5, 1.25], [2, 2, 2, 2], "a = 1\nb = 2\n", steps=4, lr=0.1)
    make(home, "two", [3.0, 2.0, 1.75], [2, 2, 4], "a = 1\nb = 3\n", steps=3, lr=0.1, torch="2.14.0")
    found = compare("one", "two")
    assert found.settings == {"training.steps": (4, 3), "training.torch": (None, "2.14.0")}
    assert found.environment == {"torch": ("2.13.0", "2.14.0")}
    assert [line for line in found.code if line[:2] in ("-b", "+b")] == ["-b = 2", "+b = 3"]
    assert found.worlds == ([(1, 2)], [(1, 2), (3, 4)])
    assert (found.same_steps, found.losses) == (2, (1.5, 1.75))
    assert found.results == {"eval_loss": (1.25, 1.75)}
    assert not found.same_input


def test_a_run_is_like_itself(home: Home) -> None:
    make(home, "one", [3.0, 2.0], [2, 2], "", steps=2)
    found = compare("one", "one")
    assert found.same_input
    assert (found.same_steps, found.losses) == (2, None)


@pytest.mark.parametrize(
    ("versions", "data", "same"),
    [
        (("v1", "v1"), ({"source": "/a"}, {"source": "/b"}), True),
        (("v1", "v2"), ({"source": "/a"}, {"source": "/a"}), False),
        (("v1", "v2"), ({"source": "/a"}, {"source": "/b"}), False),
        (("v1", "v1"), ({"source": "/a", "sequence_length": 8}, {"source": "/a", "sequence_length": 9}), False),
        (("v1", "v1"), ({"tokenizer": {"file": "/a"}}, {"tokenizer": {"file": "/b"}}), True),
        (
            ("v1", "v1"),
            ({"source": [{"source": "/a", "weight": 1}]}, {"source": [{"source": "/b", "weight": 1}]}),
            True,
        ),
        (
            ("v1", "v1"),
            ({"source": [{"source": "/a", "weight": 1}]}, {"source": [{"source": "/a", "weight": 2}]}),
            False,
        ),
        ((None, None), ({"source": "/a"}, {"source": "/a"}), False),
        (("v1", None), ({"source": "/a"}, {"source": "/a"}), False),
    ],
)
def test_data_is_the_same_by_its_version(
    home: Home, versions: tuple[str | None, str | None], data: tuple[dict[str, Any], dict[str, Any]], same: bool
) -> None:
    """Where it was read from does not matter; without a version nothing is known about it."""
    for run, version, section in zip(("one", "two"), versions, data, strict=True):
        make(home, run, [3.0], [2], "", version, section)
    assert compare("one", "two").same_input is same


def test_one_that_is_shorter(home: Home) -> None:
    make(home, "one", [3.0, 2.0], [2, 2], "", steps=2)
    make(home, "two", [3.0], [2], "", steps=2)
    assert (compare("one", "two").same_steps, compare("two", "one").losses) == (1, None)
