"""The first samples of a job's data, made in this process, to try a job before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.prepare.record_reader import RecordReader
from drivetrain_pipelines.prepare.samples import maker_of
from drivetrain_pipelines.prepare.splitting import Splitter
from drivetrain_pipelines.prepare.tokenizer import load_tokenizer, train_tokenizer
from drivetrain_pipelines.raw.labels import read_labels
from drivetrain_pipelines.raw.records import FILE_PER_RECORD, Chunk, Records, chunk_files, chunk_labelled_files
from drivetrain_pipelines.raw.sources import SourceFile, format_of, list_urls, open_file
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder, open_storage
from drivetrain_pipelines.storage.shards import Manifest, Shard, encode_shard

_CHUNK_BYTES = 1 << 20
_MAX_FILES = 8  # of a source, whose records are counted until there are enough
_BYTES_PER_TOKEN = 8  # generous, so that the text fills a few samples


@dataclass
class FirstSamples:
    """The first records of the data, and the samples that were made of them.

    Attributes:
        records: number of records read.
        skipped: bad records, each with its error.
        classes: names of the classes.
        tokenizer: of text.
        shards: the samples, by split.
    """

    records: int = 0
    skipped: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    shards: dict[str, list[Shard]] = field(default_factory=lambda: {"train": [], "eval": []})


def first_samples(spec: DataSpec, code_folder: Path, downloads: Path, target: str, limit: int) -> FirstSamples:
    """Make samples of the first records of every source, as a dataset version in the folder ``target``.

    Without ``eval_source`` both splits hold the same samples. A tokenizer is trained on these records only.

    Args:
        spec: sources are checked and absolute; ``files`` and the tokenizer's file are on this machine.
        code_folder: directory of the user's code.
        downloads: folder where packages are unpacked.
        limit: records of each source.

    Raises:
        PrepareError: there are no records or no samples.
        InputError: a key names a column that the records lack.
    """
    found = FirstSamples()
    parts = list(_parts(spec, code_folder, downloads, limit, found, Path(target)))
    if spec.kind == "tokens":
        found.tokenizer = _tokenizer(spec, [records for _, _, records in parts])
    maker, folder, schema = maker_of(spec, found.tokenizer), StorageFolder(target), None
    for number, (split, source_index, records) in enumerate(parts):
        _check_columns(spec, records)
        found.records += records.table.num_rows
        for batch in maker.make(records, Splitter(split, spec.eval_fraction)).batches.values():
            encoded, file = encode_shard(batch), f"{split}-{number:05d}.arrow"
            folder.write(file, encoded)
            digests = block_digests(memoryview(encoded))
            found.shards[split].append(Shard(file, batch.num_rows, encoded.size, digests, source_index))
            schema = pa.ipc.open_file(encoded).schema
        found.skipped += records.skipped
    if schema is None or not found.shards["train"]:
        hint = f"; {len(found.skipped)} were skipped, the first: {found.skipped[0]}" if found.skipped else ""
        raise PrepareError(f"the first {found.records} records make not one sample{hint}")
    splits = {"train": found.shards["train"], "eval": found.shards["eval"] or found.shards["train"]}
    sizes = {"classes": len(found.classes)} if found.classes else {}
    sizes |= {"vocab_size": found.tokenizer.get_vocab_size()} if found.tokenizer else {}
    statistics = {name: float(size) for name, size in sizes.items()}
    Manifest(spec.name, "try", schema, splits, statistics, {}, found.classes).write(folder)
    return found


def _parts(
    spec: DataSpec, code_folder: Path, downloads: Path, limit: int, found: FirstSamples, heads: Path
) -> Iterator[tuple[str, int, Records]]:
    """Yield the split, the index of the source and the records of each chunk that is read."""
    reader = RecordReader(spec, code_folder)
    sources = [(part.source, "train", number) for number, part in enumerate(spec.mixture)]
    if spec.eval_source:
        sources.append((spec.eval_source, "eval", 0))
    for source, split, source_index in sources:
        count = 0
        for chunk in _chunks(spec, source, downloads, limit, found, heads):
            records = reader.read(chunk, limit - count)
            yield split, source_index, records
            count += records.table.num_rows
            if count >= limit:
                break


def _chunks(
    spec: DataSpec, source: str, downloads: Path, limit: int, found: FirstSamples, heads: Path
) -> Iterator[Chunk]:
    urls = list_urls(source, spec.file_format, spec.storage, downloads)
    format_ = format_of(urls, spec.file_format)
    if format_ in FILE_PER_RECORD:
        labels = read_labels([SourceFile(url, 0, "") for url in urls], spec.storage)
        found.classes = sorted({*found.classes, *labels.values()}) or spec.classes or []
        number_of = {name: number for number, name in enumerate(found.classes)}
        labelled = [url for url in urls if url in labels]
        chosen = labelled[:: max(1, len(labelled) // limit)][:limit]  # of all classes
        files = [SourceFile(url, 0, "") for url in chosen]
        numbers = {url: number_of[labels[url]] for url in chosen}
        yield from chunk_labelled_files(files, numbers, format_, spec.chunk_bytes)
        return
    found.classes = found.classes or spec.classes or []
    enough = max(_CHUNK_BYTES, _BYTES_PER_TOKEN * spec.sequence_length) if spec.kind == "tokens" else _CHUNK_BYTES
    for url in urls[:_MAX_FILES]:
        filesystem, path = open_storage(url, spec.storage)
        file = SourceFile(url, int(filesystem.info(path)["size"] or 0), "")
        if format_ == "csv" and file.size > enough and not url.endswith(".gz"):
            file = _head(url, enough, spec, heads)
        yield from chunk_files([file], format_, min(enough, spec.chunk_bytes), spec.storage)


def _head(url: str, size: int, spec: DataSpec, heads: Path) -> SourceFile:
    """Copy the first rows of a CSV file, which is otherwise read as a whole; they end where no quotes are open."""
    with open_file(url, spec.storage) as file:
        content = bytes(file.read(size))
    end = len(content)
    while (end := content.rfind(b"\n", 0, end)) > 0 and content.count(b'"', 0, end) % 2:
        pass
    copy = heads / url.rpartition("/")[2]
    copy.write_bytes(content[: end + 1])
    return SourceFile(f"file://{copy}", end + 1, "")


def _tokenizer(spec: DataSpec, parts: list[Records]) -> Tokenizer:
    if spec.tokenizer.file:
        return load_tokenizer(Path(spec.tokenizer.file).read_bytes(), spec.tokenizer.file)
    texts = list[str]()
    for records in parts:
        if spec.text_column in records.table.column_names:
            texts += [str(text) for text in records.table[spec.text_column].to_pylist() if text is not None]
        elif records.table.num_rows:
            _check_columns(spec, records)
    lines = (line for text in texts for line in text.splitlines(keepends=True))
    return train_tokenizer(lines, spec.tokenizer.vocab_size, spec.tokenizer.special_tokens)


def _check_columns(spec: DataSpec, records: Records) -> None:
    """Raise `InputError` for a key that names a column which the records lack."""
    names = records.table.column_names
    wanted = {f"data.columns.{number}": name for number, name in enumerate(spec.columns or ())}
    if spec.label_column != type(spec).model_fields["label_column"].default:
        wanted["data.label_column"] = spec.label_column
    if spec.kind == "tokens":
        wanted["data.text_column"] = spec.text_column
    if spec.split_by:
        wanted["data.split_by"] = spec.split_by
    for key, name in wanted.items():
        if records.table.num_rows and name not in names:
            raise InputError(key, repr(name), f"a column of the records ({', '.join(names)})")
