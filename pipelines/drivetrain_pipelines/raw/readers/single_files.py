"""Files that are one record each: images, recordings, documents."""

from __future__ import annotations

from codecs import BOM_UTF8

import pyarrow as pa

from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.conversions.column import Values
from drivetrain_pipelines.raw.records import Needed, Table
from drivetrain_pipelines.raw.sources import open_file
from drivetrain_pipelines.spec import StorageSpec


def read_files(chunk: Chunk, storage: StorageSpec, _: Needed | None) -> Table:
    """Read whole files: the columns ``file`` and ``bytes`` (documents: ``text``), and ``label`` if there are labels."""
    contents, bad = [], {}
    for index, url in enumerate(chunk.urls):
        try:
            with open_file(url, storage) as file:
                content = bytes(file.read())
            contents.append(content.removeprefix(BOM_UTF8) if chunk.format == "documents" else content)
        except OSError as error:
            contents.append(b"")
            bad[index] = f"it cannot be read: {error.strerror or error}"
    values: dict[str, Values] = {"file": list(chunk.urls)}
    values["text" if chunk.format == "documents" else "bytes"] = pa.array(contents, pa.large_binary())
    if chunk.labels:
        values["label"] = list(chunk.labels)
    return Table("the files", values, tuple(values), len(contents), lambda row: chunk.urls[row], bad)
