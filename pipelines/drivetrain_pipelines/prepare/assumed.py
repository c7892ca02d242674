"""A few made-up samples with the shapes that a job asks for, for questions about a model before its data is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.prepare.tokenizer import TextEncoder, load_tokenizer, token_dtype
from drivetrain_pipelines.raw.conversions.recordings import log_mel
from drivetrain_pipelines.spec import AudioSpec, DataSpec
from drivetrain_pipelines.storage.arrow_types import array_of
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.paths import is_local
from drivetrain_pipelines.storage.shards import Manifest, Shard, encode_shard

_ROWS = 4
_CLASSES = 1000
_KEY = "--no-data"


def write_assumed(spec: DataSpec, folder: Path) -> tuple[str, ...]:
    """Write a dataset of made-up samples into a folder; return what was assumed about the data.

    Raises:
        InputError: the job does not say what shapes its samples have.
    """
    statistics, assumed = dict[str, float](), list[str]()
    if spec.kind == "tokens":
        statistics["vocab_size"] = _vocabulary(spec)
        if not spec.tokenizer.file:
            assumed.append(f"a vocabulary of {spec.tokenizer.vocab_size:,}; short texts give fewer tokens")
    columns = _columns(spec, int(statistics.get("vocab_size", 0)))
    if "label" in columns:
        statistics["classes"] = len(spec.classes or ()) or _CLASSES
        if not spec.classes:
            assumed.append(f"{_CLASSES:,} classes, as data.classes names none")
    batch = pa.record_batch({name: array_of(values) for name, values in columns.items()})
    encoded, file = encode_shard(batch), "assumed.arrow"
    storage = StorageFolder(str(folder))
    storage.write(file, encoded)
    shard = Shard(file, _ROWS, encoded.size, block_digests(memoryview(encoded)), 0)
    schema = pa.ipc.open_file(encoded).schema
    Manifest(spec.name, "0", schema, {"train": [shard]}, statistics, {}, []).write(storage)
    return tuple(assumed)


def _columns(spec: DataSpec, vocabulary: int) -> dict[str, npt.NDArray[Any]]:
    label = np.zeros(_ROWS, np.int64)
    if spec.columns:
        raise InputError(_KEY, "data.columns, whose shapes only the data shows", "a job without it", "Omit --no-data.")
    if spec.image and not spec.image.decode:
        raise InputError(_KEY, "data.image.decode: false, whose files have no fixed size", "true", "Omit --no-data.")
    if spec.image:
        channels = len(spec.image.mode)
        return {"image": np.zeros((_ROWS, spec.image.height, spec.image.width, channels), np.uint8), "label": label}
    if spec.audio:
        return {"mel": np.stack([_silence(spec.audio)] * _ROWS), "label": label}
    kind = token_dtype(vocabulary)
    if spec.packing == "pad":
        return {"tokens": np.ones((_ROWS, spec.sequence_length), kind)} | ({"label": label} if spec.classes else {})
    tokens = np.ones((_ROWS, spec.sequence_length + 1), kind)
    return {"tokens": tokens} | ({"segments": tokens.astype(np.uint16)} if spec.packing == "fit" else {})


def _silence(spec: AudioSpec) -> npt.NDArray[np.float32]:
    return log_mel(np.zeros(round(spec.seconds * spec.sample_rate), np.float32), spec)


def _vocabulary(spec: DataSpec) -> int:
    file = spec.tokenizer.file
    if not file:
        return spec.tokenizer.vocab_size
    if not (is_local(file) and Path(file).is_file()):
        raise InputError(_KEY, f"the tokenizer {file}, which is not on this machine", "a local file", "Omit --no-data.")
    return TextEncoder(load_tokenizer(Path(file).read_bytes(), file)).vocab_size
