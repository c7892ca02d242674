"""The copy of its code that a run keeps, and the list of the files in it: a run may write other files next to them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drivetrain_pipelines.errors import CorruptFileError
from drivetrain_pipelines.storage.json_files import JsonObject, atomic_write
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.home import Home
from drivetrain.job.code_files import Code, Why, read_code


def store_code(code: Code, folder: RunFolder) -> None:
    """Write the code of a new run into its folder."""
    _write(code, folder)
    with atomic_write(folder.code_version) as sink:
        sink.write(code.version.encode())


def stored_code(folder: RunFolder) -> Code:
    """Return the code of a run.

    Raises:
        CorruptFileError: a file has changed since the run was created.
    """
    listed = _listed(folder)
    try:
        contents = {name: (folder.code / name).read_bytes() for name in listed["files"]}
    except OSError as error:
        raise CorruptFileError(str(error.filename), str(error.strerror)) from error
    left_out = {name: Why[why] for name, why in listed["left_out"].items()}
    code = Code(folder.code, contents, frozenset(listed["executable"]), left_out)
    if folder.code_list.exists() and code.version != (recorded := folder.code_version.read_text()):
        raise CorruptFileError(str(folder.code), f"its files have the version {code.version}, not {recorded}")
    return code


def stored_names(folder: RunFolder) -> list[str]:
    """Return the names of the files of a run's code."""
    return list(_listed(folder)["files"])


@contextmanager
def temporary_snapshot(code: Code, home: Home) -> Iterator[Path]:
    """Write code into a folder of the home that is removed at the end."""
    with tempfile.TemporaryDirectory(dir=home.path, prefix=".code-") as folder:
        copy = RunFolder(Path(folder))
        _write(code, copy)
        yield copy.code


def _write(code: Code, folder: RunFolder) -> None:
    """Write code, and next to it the list that `drivetrain_pipelines.user_code.files_of` reads."""
    code.write(folder.code)
    left_out = {name: why.name for name, why in code.left_out.items()}
    listed = {"files": [*code.contents], "executable": sorted(code.executable), "left_out": left_out}
    with atomic_write(folder.code_list) as sink:
        sink.write(json.dumps(listed).encode())


def _listed(folder: RunFolder) -> JsonObject:
    if folder.code_list.exists():
        return json.loads(folder.code_list.read_text())  # type: ignore[no-any-return]  # we wrote it
    code = read_code(folder.code, in_project=False)  # of an earlier version, which stored no list
    return {"files": [*code.contents], "executable": [], "left_out": {}}
