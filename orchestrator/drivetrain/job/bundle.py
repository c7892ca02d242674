"""A job's folder as one file, named by its digest, for `drivetrain submit`."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from drivetrain_pipelines.errors import InputError

from drivetrain.job import code_files
from drivetrain.job.code_files import Code

MAX_BYTES = code_files.MAX_BYTES


def pack(folder: Path, job_file: str = "", data: Iterable[str] = (), outputs: Iterable[str] = ()) -> tuple[str, bytes]:
    """Pack the code of a folder, its job files, and the data inside it; return the digest and the bytes.

    The same files always produce the same bytes.

    Args:
        job_file: name of a job file that is packed even if git ignores it.
        data: paths and globs of data that the job names; packed even if git ignores it.
        outputs: paths of folders that are never packed.

    Raises:
        InputError: the folder is too large, or a file cannot be read.
    """
    named = [*data]
    code = code_files.read_code(folder, [*named, *outputs], MAX_BYTES, job_files=True)
    try:
        contents = {**code.contents, **_contents_of_data(code, code_files.data_files(folder, named))}
        contents |= {job_file: (folder / job_file).read_bytes()} if job_file else {}
    except OSError as error:
        raise InputError(str(error.filename or folder), str(error.strerror), "a readable file") from error
    content = _packed(contents, code.executable)
    return digest(content), content


def _contents_of_data(code: Code, data: dict[str, Path]) -> dict[str, bytes]:
    sizes = {name: path.stat().st_size for name, path in data.items()}
    if sum(sizes.values()) + sum(map(len, code.contents.values())) > MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        given = f"more than the limit of code and data together (the largest file is {largest})"
        fix = "Name large data by an absolute path or URL that the cluster can read."
        raise InputError(str(code.folder), given, f"at most {MAX_BYTES >> 20} MiB", fix)
    return {name: path.read_bytes() for name, path in data.items()}


def _packed(contents: Mapping[str, bytes], executable: Container[str]) -> bytes:
    sink = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=sink, mode="wb", mtime=0, filename="") as zipped,  # mtime=0: no timestamp in the header
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content in sorted(contents.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o755 if name in executable else 0o644
            tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


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
