"""A job's folder as one file, named by its digest, for `drivetrain submit`."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

import pathspec
from drivetrain_pipelines.errors import InputError

MAX_BYTES = 64 << 20
_ALWAYS_EXCLUDED = [
    ".git/",
    ".venv/",
    "venv/",
    "__pycache__/",
    "*.pyc",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
]
# Files with these names hold secrets: never packed, and rejected where a job needs them.
SECRETS = [".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", "credentials", "credentials.*",
           ".aws", ".ssh", "*.p12", "*.pfx", "auth_token", "token"]  # fmt: skip


def pack(folder: Path) -> tuple[str, bytes]:
    """Pack a folder, without files in ``.gitignore`` and secrets; return the digest and the bytes.

    The same files always produce the same bytes.

    Raises:
        InputError: the folder is too large, or a file cannot be read.
    """
    try:
        return _pack(folder)
    except OSError as error:
        fix = "Make it readable, or list it in .gitignore."
        raise InputError(str(error.filename or folder), str(error.strerror), "a readable file", fix) from error


def _pack(folder: Path) -> tuple[str, bytes]:
    sink = io.BytesIO()
    total = 0
    with (
        gzip.GzipFile(fileobj=sink, mode="wb", mtime=0, filename="") as zipped,  # mtime=0: no timestamp in the header
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in _files(folder):
            name = path.relative_to(folder).as_posix()
            total += path.stat().st_size
            if total > MAX_BYTES:
                fix = "Name large data by an absolute path or URL, or list it in .gitignore."
                raise InputError(
                    str(folder), f"more than the limit ({name} and others)", f"at most {MAX_BYTES >> 20} MiB", fix
                )
            info = tarfile.TarInfo(name)
            info.size = path.stat().st_size
            info.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as source:
                tar.addfile(info, source)
    content = sink.getvalue()
    return digest(content), content


def digest(content: bytes) -> str:
    """Return the digest that names a package."""
    return hashlib.sha256(content).hexdigest()


def unpack(content: bytes, target: Path) -> None:
    """Unpack a package into a folder atomically.

    Raises:
        InputError: the content is not a package, is too large, or would write outside the folder.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            members = []
            for member in tar:  # check sizes in the headers before extracting anything
                members.append(member)
                if not member.isfile() or sum(m.size for m in members) > MAX_BYTES:
                    raise InputError("package", member.name, f"files, together at most {MAX_BYTES >> 20} MiB")
            tar.extractall(temporary, members, filter="data")
        temporary.rename(target)
    except (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        given = str(error) or "a truncated file"
        raise InputError("package", given, "a package of `drivetrain submit`") from error
    except OSError:
        if not target.exists():  # otherwise another process unpacked the same bytes first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    ignore = folder / ".gitignore"
    # File names may be invalid UTF-8; Python decodes them in the same way.
    written = ignore.read_text("utf-8", "surrogateescape").splitlines() if ignore.is_file() else []
    lines = [*_ALWAYS_EXCLUDED, *written]
    ignored = pathspec.GitIgnoreSpec.from_lines(lines)
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            continue  # skip links that lead outside the folder
        secret = any(fnmatch.fnmatch(part, pattern) for part in relative.parts for pattern in SECRETS)
        if path.is_file() and not secret and not ignored.match_file(relative.as_posix()):
            found.append(path)
    return found
