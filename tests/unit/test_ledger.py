from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage import json_files
from drivetrain_workers.protocol.step_record import Evaluation, StepRecord
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import CheckpointId

from tests.unit.step_records import step_record


def write(folder: Path, name: CheckpointId, steps: range) -> list[StepRecord]:
    records = [step_record(step, generation=name.generation) for step in steps]
    ledger.write(folder, name, records)
    return records


def test_the_newest_generation_of_each_step_counts(tmp_path: Path) -> None:
    first = write(tmp_path, CheckpointId(4, 1), range(1, 5))
    write(tmp_path, CheckpointId(8, 1), range(5, 9))
    again = write(tmp_path, CheckpointId(8, 2), range(5, 9))
    assert ledger.read(tmp_path) == first + again
    piece = next(tmp_path.glob("*g0001.json"))
    os.truncate(piece, 20)
    with pytest.raises(CorruptFileError, match=piece.name):
        ledger.read(tmp_path)


def test_only_the_pieces_after_a_step_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for end in range(4, 41, 4):
        write(tmp_path, CheckpointId(end, 1), range(end - 3, end + 1))
    write(tmp_path, CheckpointId(36, 2), range(25, 37))  # from the checkpoint of step 24 on
    opened: list[str] = []

    def read_json(path: Path) -> object:
        opened.append(path.name)
        return json_files.read_json(path)

    monkeypatch.setattr(ledger, "read_json", read_json)
    found = ledger.read_after(tmp_path, 34)
    assert [(record.step, record.generation) for record in found] == [(n, 2) for n in (35, 36)] + [
        (n, 1) for n in (37, 38, 39, 40)
    ]
    assert opened == ["step-00000036.g0001.json", "step-00000040.g0001.json", "step-00000036.g0002.json"]
    assert ledger.read_after(tmp_path, 34) == [record for record in ledger.read(tmp_path) if record.step > 34]
    assert ledger.read_after(tmp_path, 40) == []


def test_pieces_are_lists_of_json(tmp_path: Path) -> None:
    evaluated = step_record(2, evaluation=Evaluation(1.5, {"accuracy": 0.5}, -0.5))
    ledger.write(tmp_path, CheckpointId(2, 1), [step_record(1), evaluated])
    content = json.loads((tmp_path / "step-00000002.g0001.json").read_text())["content"]
    assert content[0] == {
        "step": 1,
        "positions": [0, 8],
        "world_size": 2,
        "generation": 1,
        "time": 1001.0,
        "loss": 1.0,
        "learning_rate": 0.1,
        "gradient_norm": 1.0,
    }
    assert content[1]["evaluation"] == {"loss": 1.5, "metrics": {"accuracy": 0.5}, "score": -0.5}
    assert ledger.read(tmp_path) == [step_record(1), evaluated]
