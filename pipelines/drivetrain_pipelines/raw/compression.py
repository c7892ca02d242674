"""Compressed files, read as what they contain."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from typing import Any, BinaryIO

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.formats import compression_of


def decompressed(opened: BinaryIO, url: str) -> BinaryIO:
    """Return a file that reads the content of ``opened``, compressed as the ending of its name says.

    Reading raises `PrepareError` where the compressed data is cut off or damaged. Files that are not compressed are
    returned as they are.
    """
    compression = compression_of(url)
    if not compression:
        return opened
    return io.BufferedReader(_Decompressed(opened, url, compression), 1 << 20)


def _reader(opened: BinaryIO, compression: str) -> Any:
    if compression == "zstd":
        import pyarrow as pa  # jobs are checked without it

        return pa.CompressedInputStream(pa.PythonFile(opened, mode="r"), "zstd")
    kinds: dict[str, Any] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    return kinds[compression](opened)


class _Decompressed(io.RawIOBase):
    """Reads a decompressor, whose errors become `PrepareError`."""

    def __init__(self, opened: BinaryIO, url: str, compression: str) -> None:
        self._opened, self._url, self._compression = opened, url, compression
        self._reader = _reader(opened, compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._reader.read(len(buffer))
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            if getattr(error, "errno", None) is not None:
                raise  # of the file system
            problem = f"{self._url} is cut off or is not valid {self._compression} data ({error})"
            raise PrepareError(problem, "Make or download the file again") from error
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
            self._opened.close()
        super().close()
