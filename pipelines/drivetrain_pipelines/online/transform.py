"""The user's transform of single samples as a pure function of sample, seed and position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drivetrain_pipelines.errors import TransformError, UserCodeError
from drivetrain_pipelines.order.permutation import Int64Array, mix_key
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.stream.columns import Columns, Ragged
from drivetrain_pipelines.user_code import describe, load_function

Sample = dict[str, npt.NDArray[Any]]
Function = Callable[[Sample, np.random.Generator | None], Sample]

_ONLINE_KEY = 4  # purpose of the key


class OnlineTransform:
    """Applies ``data.online.transform`` with random numbers that depend only on the job's seed and the position.

    Args:
        function: ``function(sample, random) -> sample``; ``random`` is None for evaluation. Raises `UserCodeError`.
        seed: seed of the job.
    """

    def __init__(self, function: Function, seed: int) -> None:
        self._function, self._seed = function, seed

    @classmethod
    def of(cls, spec: DataSpec, code_folder: Path, seed: int) -> OnlineTransform | None:
        """Return the transform of a job, if it has one. Raises `InputError` when its code lacks the function."""
        if spec.online is None:
            return None
        return cls(load_function(spec.online.transform, str(code_folder), "data.online.transform"), seed)

    def apply(self, columns: Columns, positions: Int64Array | None) -> Sample:
        """Transform a batch, row by row.

        Args:
            columns: arrays ``[rows, ...]``, or `Ragged`.
            positions: global position of each row; None for evaluation.

        Returns:
            Columns of numbers, ``[rows, ...]`` each; a plain number becomes ``[rows, 1]``.

        Raises:
            TransformError: the function raised, or its results do not form a batch.
        """
        rows = len(next(iter(columns.values())))
        draws: Iterable[np.random.Generator | None] = [None] * rows
        if positions is not None:
            keys = (mix_key(self._seed, _ONLINE_KEY, position) for position in positions.tolist())
            draws = (np.random.Generator(np.random.Philox(key=key)) for key in keys)
        made = []
        for number, random in enumerate(draws):
            sample = {name: _row(values, number) for name, values in columns.items()}
            try:
                given = self._function(sample, random)
            except UserCodeError as error:
                which = "" if positions is None else f"; the sample is at position {positions[number]}"
                raise TransformError(f"{error}{which}") from error
            made.append(_columns(given))
        names = list(dict.fromkeys(name for sample in made for name in sample))
        if not names:
            raise TransformError("data.online.transform returned a sample without columns")
        return {name: _stack(name, made) for name in names}


def _columns(given: Any) -> Sample:
    """Return a copy of a transformed sample, because its arrays may be reused. Raises `TransformError`."""
    if not isinstance(given, Mapping):
        raise TransformError(f"data.online.transform must return a dictionary of columns, not {type(given).__name__}")
    try:
        return {str(name): np.array(value) for name, value in given.items()}
    except (ValueError, TypeError, RuntimeError) as error:  # a list of rows of unequal lengths, a tensor on a GPU
        raise TransformError(f"data.online.transform must return numbers: {describe(error)}") from error


def _row(values: npt.NDArray[Any] | Ragged, number: int) -> npt.NDArray[Any]:
    row: npt.NDArray[Any] = values.row(number) if isinstance(values, Ragged) else values[number]
    return row


def _stack(name: str, made: list[Sample]) -> npt.NDArray[Any]:
    """Stack one column. All rows must have one type and shape, or a batch would depend on which rows it contains."""
    rows = [sample.get(name) for sample in made]
    kinds = {(str(row.dtype), row.shape) if row is not None else "missing" for row in rows}
    if len(kinds) > 1:
        found = " and ".join(sorted(map(str, kinds)))
        raise TransformError(f"data.online.transform must return {name!r} with one type and shape, not {found}")
    first = made[0][name]
    if first.dtype.kind not in "iuf":
        raise TransformError(f"data.online.transform must return numbers, but {name!r} is {first.dtype}")
    if 0 in first.shape:
        raise TransformError(f"data.online.transform must return numbers, but {name!r} has the shape {first.shape}")
    return np.stack([row.reshape(first.shape or 1) for row in rows if row is not None])
