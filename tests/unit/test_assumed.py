"""Made-up samples have the shapes and types of real ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.prepare.assumed import write_assumed
from drivetrain_pipelines.prepare.first_samples import first_samples
from drivetrain_pipelines.prepare.tokenizer import train_tokenizer
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.stream.dataset import Dataset
from PIL import Image
from pyarrow import parquet

TOKENIZER = train_tokenizer(["a few words, and a few more words"] * 4, 300)


def encoded_picture() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (5, 9)).save(sink, "PNG")
    return sink.getvalue()


def encoded_sound() -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, np.zeros(4000, np.float32), 8000, format="WAV")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        ({}, {"text": ["some words that are repeated " * 20]}),
        ({"packing": "fit"}, {"text": ["some words", "and more of them"]}),
        ({"packing": "pad"}, {"text": ["some words", "and more of them"]}),
        ({"packing": "pad", "classes": ["a", "b"]}, {"text": ["some words", "more"], "label": ["a", "b"]}),
        ({"image": {"height": 4, "width": 6}}, {"bytes": [encoded_picture()], "label": [1]}),
        ({"image": {"height": 4, "width": 6, "mode": "L"}}, {"bytes": [encoded_picture()], "label": [1]}),
        ({"audio": {"seconds": 0.5, "sample_rate": 8000, "mels": 8}}, {"bytes": [encoded_sound()], "label": [1]}),
    ],
)
def test_schemas_are_those_of_real_data(settings: dict[str, Any], table: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "data.parquet"
    parquet.write_table(pa.table(table), source)
    sizes = {"sequence_length": 8, "tokenizer": {"vocab_size": 300}}
    spec = DataSpec.model_validate({"source": str(source), **sizes, **settings})
    made = first_samples(spec, tmp_path, tmp_path / "downloads", str(tmp_path / "real"), 10)
    assumed = write_assumed(spec, tmp_path / "assumed")
    dataset = Dataset(str(tmp_path / "assumed"))
    assert dataset.manifest.schema.equals(made.schema)
    assert dataset.manifest.rows("train") >= 3, "the profile needs three"
    assert ("classes" in dataset.manifest.statistics) == ("label" in made.schema.names)
    assert bool([line for line in assumed if "classes" in line]) == ("label" in made.schema.names and not spec.classes)


@pytest.mark.parametrize(
    "settings",
    [{"columns": ["x"]}, {"image": {"height": 1, "width": 1, "decode": False}}, {"tokenizer": {"file": "/no"}}],
)
def test_shapes_that_only_the_data_shows_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--no-data: got "):
        write_assumed(DataSpec.model_validate({"source": "s", **settings}), tmp_path)
