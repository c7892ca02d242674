from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drivetrain.errors import NotFoundError
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.states import Allocation, Ended, Placing, Preparing, Progress, Queued
from drivetrain.runs.store import RunStore
from drivetrain_pipelines.errors import CorruptFileError, InputError
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.json_files import read_json, write_json
from drivetrain_workers.checkpoints.manifest import Contents, Fragment, GroupState, History, Manifest, Probe, RankIndex
from drivetrain_workers.checkpoints.policy import to_keep
from drivetrain_workers.checkpoints.store import (
    CheckpointId,
    commit,
    committed,
    newest_valid,
    rank_index,
    remove_old,
)
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.protocol.step_record import Evaluation
from drivetrain_workers.spec import KeepSpec

PLACE = Allocation((("node", 2),), 1.0)


def open_store(folder: Path) -> RunStore:
    return RunStore(f"sqlite:///{folder / 'runs.db'}")


def test_history_survives_the_process(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.create("toy-1", "abc", Queued())
    store.save("toy-1", Preparing(), "Admitted()")
    store.save("toy-1", Placing("/data", PLACE, progress=Progress(generation=2)), "Prepared()")
    store.update_facts("toy-1", dataset="/data")
    store.update_facts("toy-1", parameters=5)
    store.claim("toy-1", "session")
    record = open_store(tmp_path).get("toy-1")
    assert record.state == Placing("/data", PLACE, progress=Progress(generation=2))
    assert record.facts == RunFacts(dataset="/data", parameters=5)
    assert record.session == "session"
    assert [state.phase for _, _, state in open_store(tmp_path).history("toy-1")] == ["preparing", "placing"]


def test_runs_are_found_by_prefix(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(NotFoundError, match="Known runs: none"):
        store.get("x")
    store.create("toy-1a", "f", Queued())
    store.create("toy-1b", "f", Ended(Reason.COMPLETED), released=True)
    assert store.get("toy-1a").id == "toy-1a"
    assert store.get("toy-1b").ended
    with pytest.raises(InputError, match="toy-1a, toy-1b"):
        store.get("toy")
    with pytest.raises(NotFoundError, match="%"):
        store.get("%")


def make_checkpoint(root: Path, name: CheckpointId, finish: bool = True) -> Path:
    folder = name.folder(root)
    folder.mkdir(parents=True)
    data = f"state of step {name.step}".encode()
    (folder / "rank-00000.bin").write_bytes(data)
    write_json(folder / rank_index(0), RankIndex(Contents(), len(data), block_digests(data)).to_json())
    if finish:
        commit(folder, Manifest(name.step, 8 * name.step, 1, 1, {}))
    return folder


def test_newest_valid_checkpoint_wins(tmp_path: Path) -> None:
    good = make_checkpoint(tmp_path, CheckpointId(4, 1))
    bad = make_checkpoint(tmp_path, CheckpointId(8, 1))
    make_checkpoint(tmp_path, CheckpointId(12, 1), finish=False)
    (bad / "rank-00000.bin").write_bytes(b"state of step 9")
    found, problems = newest_valid(tmp_path)
    assert found == good
    assert len(problems) == 1
    assert str(bad / "rank-00000.bin") in problems[0]
    assert "block 0" in problems[0]
    assert newest_valid(tmp_path / "nothing") == (None, [])


@pytest.mark.parametrize("victim", ["manifest.json", "rank-00000.json", "rank-00000.bin"])
def test_a_missing_or_truncated_file_makes_a_checkpoint_invalid(tmp_path: Path, victim: str) -> None:
    folder = make_checkpoint(tmp_path, CheckpointId(4, 1))
    content = (folder / victim).read_bytes()
    for broken in (content[: len(content) // 2], b""):
        (folder / victim).write_bytes(broken)
        found, problems = newest_valid(tmp_path)
        assert found is None
        assert victim in problems[0]
    (folder / victim).unlink()
    assert newest_valid(tmp_path)[0] is None


def test_retention_removes_old_and_abandoned_but_not_running(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        make_checkpoint(tmp_path, CheckpointId(step, 2))
    make_checkpoint(tmp_path, CheckpointId(16, 1), finish=False)  # abandoned by an older generation
    make_checkpoint(tmp_path, CheckpointId(16, 2), finish=False)  # being written
    remove_old(tmp_path, partial(to_keep, keep=KeepSpec(last=2)))
    assert [c.step for c in committed(tmp_path)] == [12, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000008.g0002",
        "step-00000012.g0002",
        "step-00000016.g0002",
    ]


def test_order_is_by_step_then_generation(tmp_path: Path) -> None:
    for name in (CheckpointId(8, 1), CheckpointId(8, 3), CheckpointId(100_000_000, 2), CheckpointId(12, 12345)):
        make_checkpoint(tmp_path, name)
    (tmp_path / "step-x").mkdir()
    assert [(c.step, c.generation) for c in committed(tmp_path)] == [(100_000_000, 2), (12, 12345), (8, 3), (8, 1)]
    assert CheckpointId.parse("step-1.g1") is None
    with pytest.raises(CorruptFileError, match="missing"):
        read_json(tmp_path / "step-x" / "manifest.json")


FACTS = {"format": 2, "step": 8, "samples": 64, "world_size": 2, "zero_stage": 1, "shapes": {"w": [2, 3]}}


def test_scores_of_checkpoints() -> None:
    """A score that is not finite counts as no score."""

    def score_of(**facts: Any) -> float | None:
        return Manifest.from_json({**FACTS, **facts}).score

    assert score_of(evaluation={"loss": 2.0, "metrics": {}, "score": -0.5}) == -0.5
    assert score_of(evaluation={"loss": 2.0, "metrics": {}, "score": math.nan}) is None
    assert score_of(evaluation=None) is None


def test_manifests_and_indexes_survive_json() -> None:
    """Also a manifest without the keys of later versions."""
    bare = Manifest(8, 64, 2, 1, {"w": [2, 3]})
    assert Manifest.from_json(FACTS) == bare
    whole = replace(
        bare,
        evaluation=Evaluation(1.0, {"accuracy": 0.5}, -0.5),
        probe=Probe(56, 1.5),
        history=History(1000.0, (2.0, 1.5), -0.5, 1),
        whole=True,
    )
    assert Manifest.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    contents = Contents((Fragment("w", "weights", 0, 6, 0),), {0: GroupState({"betas": (0.9, 0.95)}, {"step": 8.0})})
    index = RankIndex(contents, 24, ["00"])
    assert RankIndex.from_json(json.loads(json.dumps(index.to_json()))) == index
