"""Other libraries that stream shuffled samples. Each writes the same samples in its own format and reads them as its
documentation recommends for one process without workers.

A peer is a pair of functions, ``write(raw, folder, column)`` and ``read(folder, column)``; `read` yields the number of
samples in each batch. Imports are inside the functions, because no environment has all of the peers.
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

BATCH = 64
_SHUFFLED = 1000  # samples, for shuffle buffers
_PART_BYTES = 64 << 20
_SHORT = 16_384  # rows of a part, where parts are counted in rows

Rows = Callable[[int], Any]  # a sample by its index


def load(folder: Path, column: str) -> tuple[int, Rows]:
    """Return the number of samples, and a function that returns one: an int32 array, or bytes."""
    values = np.load(folder / "raw.npy", mmap_mode="r")
    if column == "tokens":
        return len(values), lambda number: values[number]
    offsets = np.load(folder / "offsets.npy")
    return len(offsets) - 1, lambda number: values[offsets[number] : offsets[number + 1]].tobytes()


def _table(raw: Path, column: str) -> Any:
    import pyarrow as pa

    count, row = load(raw, column)
    if column == "tokens":
        values = np.load(raw / "raw.npy", mmap_mode="r")
        return pa.table({column: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])})
    return pa.table({column: pa.array([row(number) for number in range(count)], pa.large_binary())})


def _sizes(column: str, batch: Any) -> int:
    """Return the number of rows, and check that they were delivered."""
    values = batch[column] if isinstance(batch, dict) else batch
    assert len(values[0]) > 0
    return len(values)


def _stack(column: str) -> Callable[[list[Any]], Any]:
    """Return a function that combines samples to a batch: arrays are stacked, bytes stay a list."""
    return lambda rows: np.stack([row[column] for row in rows]) if column == "tokens" else [r[column] for r in rows]


def write_huggingface(raw: Path, folder: Path, column: str) -> None:
    """Write Arrow files for `datasets`."""
    import datasets

    datasets.Dataset(_table(raw, column)).save_to_disk(str(folder))


def read_huggingface(folder: Path, column: str) -> Iterator[int]:
    """Read with random access by batches of indices, as a DataLoader with ``__getitems__`` does."""
    import datasets
    from torch.utils.data import DataLoader

    dataset = datasets.load_from_disk(str(folder)).with_format("numpy")
    loader: Any = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, collate_fn=_stack(column))  # type: ignore[arg-type]
    while True:
        for batch in loader:
            yield _sizes(column, batch)


def write_lance(raw: Path, folder: Path, column: str) -> None:
    """Write one Lance dataset."""
    import lance

    lance.write_dataset(_table(raw, column), str(folder), max_rows_per_file=_SHORT)


def read_lance(folder: Path, column: str) -> Iterator[int]:
    """Read with its own `LanceDataset` for torch and its sampler that shuffles batches."""
    import lance
    from lance.sampler import ShardedBatchSampler
    from lance.torch.data import LanceDataset

    sampler = ShardedBatchSampler(0, 1, randomize=True)
    plain: Any = {} if column == "tokens" else {"to_tensor_fn": lambda batch, **_: {column: batch[column].to_pylist()}}
    while True:
        for batch in LanceDataset(lance.dataset(str(folder)), BATCH, columns=[column], sampler=sampler, **plain):
            yield _sizes(column, batch)


def write_webdataset(raw: Path, folder: Path, column: str) -> None:
    """Write tar files with one member per sample."""
    count, row = load(raw, column)
    folder.mkdir()
    for first in range(0, count, _SHORT):
        with tarfile.open(folder / f"part-{first:08d}.tar", "w") as tar:
            for number in range(first, min(count, first + _SHORT)):
                content = bytes(row(number))
                member = tarfile.TarInfo(f"{number:08d}.{column}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_webdataset(folder: Path, column: str) -> Iterator[int]:
    """Read with shuffled parts and a shuffle buffer."""
    import webdataset

    decode = (lambda value: np.frombuffer(value, np.int32)) if column == "tokens" else (lambda value: value)
    parts = sorted(map(str, folder.glob("*.tar")))
    pipeline = (
        webdataset.WebDataset(parts, shardshuffle=len(parts), empty_check=False)
        .shuffle(_SHUFFLED)
        .map_dict(**{column: decode})
        .batched(BATCH, partial=False, collation_fn=_stack(column))
    )
    while True:
        for batch in pipeline:
            yield _sizes(column, batch)


def write_litdata(raw: Path, folder: Path, column: str) -> None:
    """Write binary chunks; tokens as one long row, which its `TokensLoader` divides."""
    import litdata
    import torch

    count, row = load(raw, column)
    tokens: Any = {"item_loader": litdata.streaming.TokensLoader(len(row(0)))} if column == "tokens" else {}
    writer = litdata.streaming.cache.Cache(str(folder), chunk_bytes=_PART_BYTES, **tokens)
    for number in range(count):
        writer[number] = torch.from_numpy(np.array(row(number))) if column == "tokens" else {column: row(number)}
    writer.done()
    writer.merge()


def read_litdata(folder: Path, column: str) -> Iterator[int]:
    """Read with its `StreamingDataset` and `StreamingDataLoader`, shuffled."""
    import litdata

    if column == "tokens":
        _, row = load(folder.parent, column)
        loader: Any = litdata.streaming.TokensLoader(len(row(0)))
        dataset = litdata.StreamingDataset(str(folder), item_loader=loader, shuffle=True, drop_last=True)
        batches: Any = litdata.StreamingDataLoader(dataset, batch_size=BATCH)
    else:
        dataset = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True)
        batches = litdata.StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=_stack(column))
    while True:
        for batch in batches:
            yield _sizes(column, batch)


def write_ray_data(raw: Path, folder: Path, column: str) -> None:
    """Write Parquet files, uncompressed."""
    import pyarrow.parquet as pq

    table = _table(raw, column)
    folder.mkdir()
    for first in range(0, table.num_rows, _SHORT):
        pq.write_table(table.slice(first, _SHORT), folder / f"{first:08d}.parquet", compression="none")


def read_ray_data(folder: Path, column: str) -> Iterator[int]:
    """Read with `iter_torch_batches` (for bytes `iter_batches`: torch has none), with shuffled files and a buffer."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_parquet(str(folder), shuffle="files")
    options: dict[str, Any] = {"batch_size": BATCH, "local_shuffle_buffer_size": _SHUFFLED, "drop_last": True}
    while True:
        for batch in dataset.iter_torch_batches(**options) if column == "tokens" else dataset.iter_batches(**options):
            yield _sizes(column, batch)


def write_mosaicml(raw: Path, folder: Path, column: str) -> None:
    """Write MDS shards."""
    MDSWriter = _streaming().MDSWriter  # noqa: N806  # a class

    count, row = load(raw, column)
    kind = f"ndarray:int32:{len(row(0))}" if column == "tokens" else "bytes"
    with MDSWriter(out=str(folder), columns={column: kind}, size_limit=_PART_BYTES) as writer:
        for number in range(count):
            writer.write({column: np.array(row(number)) if column == "tokens" else row(number)})


def read_mosaicml(folder: Path, column: str) -> Iterator[int]:
    """Read with `StreamingDataset` under a DataLoader, shuffled."""
    from torch.utils.data import DataLoader

    dataset = _streaming().StreamingDataset(local=str(folder), batch_size=BATCH, shuffle=True)
    loader: Any = DataLoader(dataset, BATCH, collate_fn=_stack(column), drop_last=True)
    while True:
        for batch in loader:
            yield _sizes(column, batch)


def _streaming() -> Any:
    """Import MosaicML Streaming, with a stub of torchvision, which CPU builds of torch cannot load."""
    import transformers.feature_extraction_utils  # before torchvision appears to be installed

    assert transformers
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = ModuleType(name)
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    import streaming

    return streaming


Write = Callable[[Path, Path, str], None]
Read = Callable[[Path, str], Iterator[int]]

PEERS: dict[str, tuple[Write, Read]] = {
    "mosaicml": (write_mosaicml, read_mosaicml),
    "litdata": (write_litdata, read_litdata),
    "webdataset": (write_webdataset, read_webdataset),
    "huggingface": (write_huggingface, read_huggingface),
    "lance": (write_lance, read_lance),
    "ray_data": (write_ray_data, read_ray_data),
}
