"""Access to files by URL through fsspec; S3 through s3fs."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tenacity
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.json_files import atomic_write, json_bytes, parse_json
from drivetrain_pipelines.storage.paths import is_local, local_path

_S3_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 2, "mode": "standard"}}


def open_storage(url: str, storage: StorageSpec) -> tuple[Any, str]:
    """Return file system and path of a URL. Each process opens its own: clients do not survive a fork.

    Raises:
        ValueError, ImportError: no file system for this scheme.
    """
    if is_local(url):  # fsspec would take `::` in a path for a chain of URLs
        return LocalFileSystem(), str(local_path(url).expanduser().absolute())
    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):
        options = {"config_kwargs": _S3_TIMEOUTS, "anon": storage.anonymous, "use_listings_cache": False}
        if storage.endpoint_url:
            options["endpoint_url"] = storage.endpoint_url
        if storage.profile:
            options["profile"] = storage.profile
    filesystem, path = url_to_fs(url, **options)
    if options:
        filesystem.retries = 1  # s3fs would retry for up to a minute by itself; our deadlines apply above it
    return filesystem, str(path)


@dataclass(frozen=True)
class StorageFolder:
    """A folder on a file system or in object storage. Files are written atomically.

    Attributes:
        location: path or fsspec URL.
        storage: how to reach a URL.
        timeout_s: how long failed operations are retried before they raise.
    """

    location: str
    storage: StorageSpec = field(default_factory=StorageSpec)
    timeout_s: float = 120.0

    def url(self, name: str) -> str:
        """Return the full path or URL of a file in the folder."""
        return f"{self.location}/{name}"

    @property
    def local(self) -> Path | None:
        """The folder as a path; None in object storage."""
        return local_path(self.location) if is_local(self.location) else None

    def write(self, name: str, content: Any) -> None:
        """Write a file (anything with the buffer protocol), atomically. Raises OSError."""
        if self.local:
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(content)
        else:
            filesystem, remote_path = open_storage(self.url(name), self.storage)
            self._with_retries(filesystem.pipe_file, remote_path, bytes(content))

    def write_json(self, name: str, content: Any) -> None:
        """Write JSON that carries its own checksum."""
        self.write(name, json_bytes(content))

    def upload(self, name: str, source: Path) -> None:
        """Copy a local file, of any size, to ``name``. Raises OSError."""
        if self.local:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as file, source.open("rb") as content:
                shutil.copyfileobj(content, file, 1 << 23)
        else:
            filesystem, path = open_storage(self.url(name), self.storage)
            self._with_retries(filesystem.put_file, str(source), path)

    def files(self, name: str = "") -> dict[str, int]:
        """Return the bytes of every file below a folder, by name as `read` takes it; empty for a missing folder."""
        filesystem, root = open_storage(self.location, self.storage)
        below = f"{root}/{name}".rstrip("/")
        found = self._with_retries(partial(filesystem.find, below, detail=True))
        return {path.removeprefix(f"{root}/"): int(entry["size"]) for path, entry in found.items()}

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            CorruptFileError: it is missing.
        """
        filesystem, path = open_storage(self.url(name), self.storage)
        try:
            return bytes(self._with_retries(filesystem.cat_file, path))
        except FileNotFoundError as error:
            raise CorruptFileError(self.url(name), "the file is missing") from error

    def read_json(self, name: str) -> Any:
        """Read a file made by `write_json`. Raises `CorruptFileError` when it is missing, truncated or changed."""
        return parse_json(self.read(name), self.url(name))

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None when it is missing."""
        filesystem, path = open_storage(self.url(name), self.storage)
        try:
            return int(self._with_retries(filesystem.info, path)["size"])
        except FileNotFoundError:
            return None

    def rename(self, name: str, new_name: str) -> None:
        """Rename a file. Does nothing when it is missing."""
        filesystem, path = open_storage(self.url(name), self.storage)
        _, target = open_storage(self.url(new_name), self.storage)
        with suppress(FileNotFoundError):
            self._with_retries(filesystem.mv, path, target)

    def remove(self, name: str) -> None:
        """Remove a folder and everything in it. Does nothing when it is missing."""
        filesystem, path = open_storage(self.url(name), self.storage)
        if self._with_retries(filesystem.exists, path):
            self._with_retries(partial(filesystem.rm, path, recursive=True))

    def _with_retries(self, call: Any, *arguments: Any) -> Any:
        """Call and retry: object storage throttles and fails temporarily. All errors become OSErrors."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_not_exception_type(FileNotFoundError),
            wait=tenacity.wait_random_exponential(0.1, 5),
            stop=tenacity.stop_after_delay(self.timeout_s),
            reraise=True,
        )
        try:
            return retrying(call, *arguments)
        except OSError:
            raise
        except Exception as error:  # storage clients have their own error classes
            raise OSError(f"{self.location}: {error!r:.300}") from error
