"""A mutated source is prepared as an independent reader reads it, refused with a sentence, or has bad records."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pytest
from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.prepare import prepare as preparation
from drivetrain_pipelines.prepare.preprocessor import Preprocessor
from drivetrain_pipelines.raw.checks import check_data
from drivetrain_pipelines.raw.conversions.recordings import log_mel
from drivetrain_pipelines.spec import AudioSpec, DataSpec
from pyarrow import ipc
from tokenizers import Tokenizer

from tests.fuzz.source_files import AUDIO, KINDS, Kind, Record, mutate


class InlinePool:
    """Calls one preprocessor in this process, in place of actors."""

    def __init__(self, _: int, *arguments: Any) -> None:
        self._worker = Preprocessor(*arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(
        self, method: str, calls: Mapping[int, tuple[Any, ...]], on_result: Callable[[int, Any], None], _: object
    ) -> None:
        """Make the calls in order."""
        for number, arguments in calls.items():
            on_result(number, getattr(self._worker, method)(*arguments))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_mutated_sources(kind: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "ActorPool", InlinePool)
    outcomes = Counter(outcome(kind, seed, tmp_path / str(seed)) for seed in range(count))
    assert outcomes["prepared"] + outcomes["bad records"] > 0, outcomes


def outcome(name: str, seed: int, folder: Path) -> str:
    """Prepare one mutated source; return what became of it. Asserts that nothing differs."""
    choose, kind = random.Random(f"{name} {seed}"), KINDS[name]
    source = folder / "source"
    source.mkdir(parents=True)
    file = kind.write(source, choose)
    untouched = choose.random() < 0.05
    if not untouched:
        mutate(file, choose)
    skips = choose.random() < 0.7
    data = {"name": "d", "eval_fraction": 0.5, "on_error": "skip" if skips else "fail", **kind.data}
    try:
        read: list[Record] | None = kind.read(file)
    except Exception:  # the independent reader cannot read it; Drivetrain may refuse it
        read = None
    try:
        spec = check_data(DataSpec(source=str(source), **data), folder)
        prepared = preparation.prepare(spec, str(folder / "made"), folder / "downloads", folder, 1, lambda *_: None)
    except (InputError, PrepareError) as error:
        return _refused(error, untouched, folder)
    made_in = prepared.folder.local
    assert made_in
    made = _made(made_in)
    skipped = int(prepared.manifest.statistics["skipped"])
    assert read is not None or skipped or not made, f"{name} {seed}: only Drivetrain can read it"
    if read is not None:
        _compare(kind, made, read, made_in, f"{name} {seed}")
    shutil.rmtree(folder)
    return "bad records" if skipped else "prepared"


def _refused(error: InputError | PrepareError, untouched: bool, folder: Path) -> str:
    _check_sentence(str(error))
    assert not untouched, error
    shutil.rmtree(folder)
    return "refused"


def _check_sentence(text: str) -> None:
    assert len(text) < 1200, text
    assert "\n" not in text, text
    for word in ("Traceback", "Error(", "pyarrow", "<class"):
        assert word not in text, text


def _made(folder: Path) -> list[dict[str, Any]]:
    """Read every row of a dataset with pyarrow alone."""
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.arrow")):
        table = ipc.open_file(pa.memory_map(str(file))).read_all()
        columns = {name: _plain(table[name].combine_chunks()) for name in table.column_names}
        rows += [{name: column[n] for name, column in columns.items()} for n in range(len(table))]
    return rows


def _plain(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    if isinstance(column.type, pa.FixedShapeTensorType):
        return column.to_numpy_ndarray()
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten()).reshape(len(column), -1)
    return column.to_pylist()


def _compare(kind: Kind, made: list[dict[str, Any]], read: list[Record], folder: Path, name: str) -> None:
    if kind.view == "audio":
        _compare_audio(made, read, name)
        return
    ours = Counter(_VIEWS[kind.view](made, folder))
    every, certain = (_expected(kind, [r for r in read if r.certain or not only], folder) for only in (False, True))
    assert not ours - every, f"{name}: {list((ours - every).items())[:3]}, not in {list((every - ours).items())[:3]}"
    assert not certain - ours, f"{name}: lost {list((certain - ours).items())[:3]}"


def _expected(kind: Kind, read: list[Record], folder: Path) -> Counter[Any]:
    if kind.view in {"numbers", "images"}:
        return Counter(record.value for record in read)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    width = int(kind.data["sequence_length"])
    if kind.view == "running text":
        ids = [token for record in read for token in [*tokenizer.encode(record.value).ids, 0]]
        return Counter(tuple(ids[n : n + width + 1]) for n in range(0, len(ids) - width, width + 1))
    classes = json.loads((folder / "manifest.json").read_text())["content"].get("classes") or []
    expected: Counter[Any] = Counter()
    for text, label in (record.value for record in read):
        ids = tokenizer.encode(text).ids[:width]
        number = classes.index(str(label)) if str(label) in classes else _whole(label)
        expected[(tuple(ids + [0] * (width - len(ids))), number)] += 1
    return expected


def _whole(label: Any) -> Any:
    try:
        return int(label) if str(label).isascii() and str(label).lstrip("-").isdigit() else int(float(label))
    except (TypeError, ValueError, OverflowError):
        return label


def _compare_audio(made: list[dict[str, Any]], read: list[Record], name: str) -> None:
    spec = AudioSpec(**AUDIO["audio"])
    length = round(spec.seconds * spec.sample_rate)
    expected = [
        (log_mel(np.pad(samples[:length], (0, max(0, length - len(samples)))), spec), label, record.certain)
        for record in read
        for samples, rate, label in [record.value]
        if rate == spec.sample_rate
    ]
    doubtful = sum(not record.certain for record in read)
    unknown = 0
    for row in made:
        matches = [
            n for n, (mel, label, _) in enumerate(expected) if label == row["label"] and np.array_equal(mel, row["mel"])
        ]
        if matches:
            del expected[matches[0]]
        else:
            unknown += 1
    assert unknown <= doubtful, f"{name}: {unknown} recordings differ"
    assert not any(certain for *_, certain in expected), f"{name}: a whole recording is lost"


_VIEWS: dict[str, Callable[[list[dict[str, Any]], Path], list[Any]]] = {
    "numbers": lambda rows, _: [(float(row["x"]), float(row["y"])) for row in rows],
    "images": lambda rows, _: [(row["image"].tobytes(), row["label"]) for row in rows],
    "texts": lambda rows, _: [(tuple(row["tokens"].tolist()), row["label"]) for row in rows],
    "running text": lambda rows, _: [tuple(row["tokens"].tolist()) for row in rows],
}
