from __future__ import annotations

import sys

import numpy as np
import pytest
from drivetrain_pipelines.errors import TransformError
from drivetrain_pipelines.online.transform import OnlineTransform
from drivetrain_pipelines.online.wire import from_arrow, to_arrow
from drivetrain_pipelines.stream.columns import Ragged
from drivetrain_pipelines.user_code import guarded

COLUMNS = {
    "x": np.arange(12, dtype=np.float32).reshape(4, 3),
    "blob": Ragged(np.arange(6, dtype=np.uint8), np.array([0, 1, 3, 3, 6])),
}


def noisy(sample, random):
    noise = 0.0 if random is None else random.normal()
    return {"x": sample["x"] + np.float32(noise), "length": len(sample["blob"])}


def test_a_sample_does_not_depend_on_its_batch() -> None:
    transform = OnlineTransform(noisy, seed=1)
    whole = transform.apply(COLUMNS, np.array([7, 3, 9, 5]))
    alone = transform.apply({name: values[2:3] for name, values in COLUMNS.items()}, np.array([9]))
    assert np.array_equal(whole["x"][2:3], alone["x"])
    assert whole["length"].tolist() == [[1], [2], [0], [3]]
    assert not np.array_equal(whole["x"], transform.apply(COLUMNS, np.array([7, 3, 9, 6]))["x"])
    assert not np.array_equal(whole["x"], OnlineTransform(noisy, seed=2).apply(COLUMNS, np.array([7, 3, 9, 5]))["x"])


def test_evaluation_has_no_random_numbers() -> None:
    assert np.array_equal(OnlineTransform(noisy, seed=1).apply(COLUMNS, None)["x"], COLUMNS["x"])


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (
            lambda sample, random: {"y": sample["z"]},
            r"data\.online\.transform raised KeyError: 'z' .*; the sample is at position 3",
        ),
        (lambda sample, random: {"y": sample["blob"]}, r"'y' with one type and shape.*\(1,\).*\(2,\)"),
        (lambda sample, random: {"y": "text"}, "must return numbers"),
        (lambda sample, random: {"y": 1} if sample["x"][0] else {"z": 1}, "'z' with one type and shape.*missing"),
        (lambda sample, random: 5, "must return a dictionary of columns, not int"),
        (lambda sample, random: {"y": [[1], [1, 2]]}, "must return numbers: ValueError: "),
        (lambda sample, random: sys.exit(0), "raised SystemExit: 0"),
        (lambda sample, random: {}, "without columns"),
        (lambda sample, random: {"y": np.zeros((2, 0))}, r"shape \(2, 0\)"),
        (
            lambda sample, random: {"y": 1} | ({"z": 1} if sample["x"][0] == 3 else {}),
            "'z' with one type and shape.*missing",
        ),
    ],
)
def test_errors_of_the_users_code_are_reported(function, problem: str) -> None:
    with pytest.raises(TransformError, match=problem):
        OnlineTransform(guarded(function, "data.online.transform", "/code"), 0).apply(COLUMNS, np.array([3, 4, 5, 6]))


def test_a_reused_buffer_does_no_harm() -> None:
    buffer = np.zeros(3, np.float32)

    def reuse(sample, random):
        buffer[:] = sample["x"]
        return {"x": buffer}

    assert np.array_equal(OnlineTransform(reuse, 0).apply(COLUMNS, None)["x"], COLUMNS["x"])


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (2, 3, 4)])
def test_batches_are_transferred_unchanged(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(4 * np.prod(shape)).reshape(4, *shape).astype(dtype)
    arrived = from_arrow(to_arrow({"x": values}))["x"]
    assert arrived.dtype == values.dtype
    assert np.array_equal(arrived, values)
