"""Running text: a record for each window of a file."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from drivetrain_pipelines.raw.chunks import Chunk
from drivetrain_pipelines.raw.conversions.column import UnfitError
from drivetrain_pipelines.raw.conversions.texts import text_of
from drivetrain_pipelines.raw.fields import AFTER, BEFORE, TEXT
from drivetrain_pipelines.raw.formats import compression_of
from drivetrain_pipelines.raw.readers.errors import readable
from drivetrain_pipelines.raw.records import Place
from drivetrain_pipelines.raw.sources import open_file
from drivetrain_pipelines.raw.windows import Window, windows
from drivetrain_pipelines.spec import StorageSpec

Transform = Callable[[str, str], tuple[str, str]]  # of a text and its place: another text, or what is wrong with it


def read_windows(
    chunk: Chunk, storage: StorageSpec, transform: Transform | None
) -> tuple[pa.Table, Place, dict[int, str]]:
    """Return the windows that begin in a chunk, where each is, and why some could not be read.

    A text that is compressed or transformed is read as a whole, by the chunk in which it begins. Raises `PrepareError`.
    """
    (url,) = chunk.urls
    found: list[Window] = []
    places: list[str] = []
    bad: dict[int, str] = {}
    with readable(url, "text"), open_file(url, storage) as file:
        if transform or compression_of(url):
            content = b"" if chunk.start else bytes(file.read())
            size, start, stop = len(content), 0, len(content)
        else:
            content = None
            size = file.seek(0, 2)
            start, stop = chunk.start, size if chunk.start == chunk.stop else chunk.stop

        def read(first: int, last: int) -> bytes:
            if content is not None:
                return content[first:last]
            file.seek(first)
            return bytes(file.read(last - first))

        if transform and content:
            try:
                text, problem = transform(text_of(content).removeprefix("\ufeff"), url)
                content = text_of(text).encode()
            except UnfitError as error:
                problem = str(error)
            if problem:
                bad, found, places, content = {0: problem}, [Window("", "", "")], [url], b""
            size = stop = len(content)
        for window in windows(read, size, start, stop):
            if not isinstance(window, Window):
                bad[len(found)] = window.problem
                places.append(f"{url}, byte {window.byte + 1}")
                window = Window("", "", "")
            else:
                places.append(url)
            found.append(window)
    names = {BEFORE: "before", TEXT: "text", AFTER: "after"}
    made = {
        name: pa.array([getattr(window, own) for window in found], pa.large_string()) for name, own in names.items()
    }
    return pa.table(made), places.__getitem__, bad
