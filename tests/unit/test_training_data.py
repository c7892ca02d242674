"""Training and eval data of the ranks of a gang: together the same at every world size."""

from __future__ import annotations

import sys
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.spec import DataSpec, OnlineSpec
from drivetrain_workers.engine.batching import solve
from drivetrain_workers.engine.training_data import TrainingData, model_facts
from drivetrain_workers.records.run_folder import RunFolder

from tests.unit.datasets import assert_rows, make_dataset

GLOBAL_BATCH = 7


def spec(**fields: Any) -> DataSpec:
    return DataSpec(source="anything", lanes=2, shuffle_window=4, sequence_length=5, **fields)


def opened(folder: Path, **fields: Any) -> TrainingData:
    """Open a dataset of 23 training rows and 5 eval rows."""
    if not (folder / "data").exists():
        make_dataset(folder / "data", [5, 10, 8])
    return TrainingData(str(folder / "data"), spec(**fields), 3, RunFolder(folder / "run"))


def labels(data: TrainingData, world_size: int, rank: int, start: int, steps: int) -> list[list[int]]:
    """Return the labels of a rank's rows, step by step."""
    plan = solve(GLOBAL_BATCH, "auto", world_size)
    found = []
    with data.batches(plan, rank, 1, start) as batches:
        for number, batch in enumerate(islice(batches, steps)):
            assert batch.position == start + number * GLOBAL_BATCH
            rows = batch.columns["label"][:, 0].tolist()  # type: ignore[union-attr]
            assert_rows(batch.columns, rows)
            found.append(rows)
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_divide_the_batches_of_a_single_rank(tmp_path: Path, world_size: int) -> None:
    data = opened(tmp_path)
    alone = labels(data, 1, 0, 0, 8)
    parts = [labels(data, world_size, rank, 0, 8) for rank in range(world_size)]
    assert [[*chain(*rows)] for rows in zip(*parts, strict=True)] == alone


def test_an_epoch_has_every_row_once_and_the_stream_can_start_anywhere(tmp_path: Path) -> None:
    data = opened(tmp_path)
    assert data.epoch == 23
    stream = [*chain(*labels(data, 1, 0, 0, 10))]
    assert sorted(stream[:23]) == sorted(stream[23:46]) == [*range(23)]
    assert stream[:23] != stream[23:46]
    assert [*chain(*labels(data, 1, 0, 3 * GLOBAL_BATCH, 7))] == stream[3 * GLOBAL_BATCH :]


def test_facts_for_model_factories(tmp_path: Path) -> None:
    data = opened(tmp_path)
    assert data.facts == {"vocab_size": 5, "sequence_length": 5}
    assert data.classes == ()
    dataset = make_dataset(tmp_path / "other", [3])
    dataset.manifest.statistics.update(classes=4.0, documents=9.0)
    assert model_facts(dataset, spec()) == {"vocab_size": 5, "classes": 4, "sequence_length": 5}


@pytest.mark.parametrize("world_size", [1, 2, 5, 7])
def test_every_row_is_evaluated_by_one_rank(tmp_path: Path, world_size: int) -> None:
    """Ranks without rows compute a padding row, because all take part in collectives."""
    data, own = opened(tmp_path), []
    for rank in range(world_size):
        part = data.evaluation(solve(GLOBAL_BATCH, "auto", world_size), rank)
        rows = part.columns["label"][:, 0].tolist()  # type: ignore[union-attr]
        assert_rows(part.columns, rows)
        assert part.total_rows == 5
        assert len(rows) == max(1, part.rows)
        assert part.rows == 0 or rows[0] == part.start
        own += rows[: part.rows]
    assert own == [*range(5)]


def test_an_online_transform_has_no_random_numbers_in_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = RunFolder(tmp_path / "run").code
    code.mkdir(parents=True)
    (code / "training_data_code.py").write_text(
        "def double(sample, random):\n    assert random is None\n    return {'label': 2 * sample['label']}\n"
    )
    data = opened(tmp_path, online=OnlineSpec(transform="training_data_code:double"))
    part = data.evaluation(solve(GLOBAL_BATCH, "auto", 1), 0)
    assert {name: np.asarray(values).tolist() for name, values in part.columns.items()} == {
        "label": [[0], [2], [4], [6], [8]]
    }


def test_corrupt_data_is_reported(tmp_path: Path) -> None:
    data = opened(tmp_path)
    for path in (tmp_path / "data").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=r"train-0000\d\.arrow"):
        labels(data, 1, 0, 0, 1)
    with pytest.raises(CorruptFileError, match=r"train-00000\.arrow"):
        data.evaluation(solve(GLOBAL_BATCH, "auto", 1), 0)
