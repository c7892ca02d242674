"""What is below a path or URL: one file, the files of a folder, or those that a pattern matches."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fsspec.utils import glob_translate

from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_pipelines.spec import StorageSpec
from drivetrain_pipelines.storage.access import accessing
from drivetrain_pipelines.storage.folder import open_storage
from drivetrain_pipelines.storage.paths import is_local

_SYSTEM_FOLDERS = ("@eaDir", "lost+found", "$RECYCLE.BIN")  # of file servers and operating systems
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Entry:
    """A file that was found.

    Attributes:
        url: absolute path, or URL.
        size: bytes; -1 if the storage does not say.
        tag: identity of the content, if the storage knows one.
        problem: why it cannot be read; empty if nothing is known against it.
    """

    url: str
    size: int
    tag: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Found:
    """Files by their names relative to a folder, sorted.

    Attributes:
        how: ``file``, ``folder`` or ``pattern``.
        root: path or URL of the folder.
        hidden: files with a hidden name, or in a hidden folder.
        pattern: what follows the folder in a pattern.
    """

    how: str
    root: str
    entries: dict[str, Entry]
    hidden: tuple[str, ...] = ()
    pattern: str = ""


def find(source: str, storage: StorageSpec, key: str) -> Found:
    """Return the files of a source: what exists is taken as it is; otherwise the source is a pattern.

    Hidden names begin with ``.`` or ``_``. A pattern finds them where it names them.

    Raises:
        InputError: nothing is there, or it is neither a file nor a folder, or a folder cannot be read.
        PrepareError: object storage cannot be reached.
    """
    if is_local(source):
        try:
            found = _local(source, storage, key)
        except OSError as error:
            problem = f"{error.filename or source} cannot be read: {error.strerror or error}."
            raise InputError(key, repr(source), "a file, a folder or a glob that can be read", problem) from error
    else:
        try:
            with accessing(source):
                found = _remote(source, storage)
        except InputError:
            raise
        except Exception as error:  # storage clients have their own error classes
            raise PrepareError(f"{key}: {source} cannot be listed: {str(error) or repr(error):.300}") from error
    if not found.entries and not found.hidden:
        what = "The folder has no files."
        if found.how == "pattern":
            folders = is_local(source) and glob.glob(os.path.join(glob.escape(found.root), found.pattern))
            matched = f"folders ({folders[0]}): add /** to it" if folders else "no file"
            what = f"The glob matches {matched}." if found.pattern else "Nothing was found there."
        raise InputError(key, repr(source), "a file, a folder with files, or a glob that matches a file", what)
    return found


def is_hidden(name: str) -> bool:
    """Check whether a relative name, or a folder in it, is hidden."""
    return any(part.startswith((".", "_")) or part in _SYSTEM_FOLDERS for part in name.split("/"))


def _local(source: str, storage: StorageSpec, key: str) -> Found:
    _, path = open_storage(source, storage)
    if os.path.isdir(path):
        return _found("folder", path, _walk(path, key))
    if os.path.lexists(path):
        entry = _entry(path)
        if entry.problem:
            raise InputError(key, repr(source), "a file or a folder", f"It {entry.problem}.")
        return Found("file", os.path.dirname(path), {os.path.basename(path): entry})
    root, pattern = _literal_part(path)
    if not _MAGIC.search(pattern) or not os.path.isdir(root):
        allowed = "an existing file or folder, a glob that matches, or a URL"
        raise InputError(key, repr(source), allowed, f"Nothing was found there: {root} has no {pattern.split('/')[0]}.")
    parts = pattern.split("/")

    def descends(folder: str) -> bool:
        names = folder.split("/")
        for name, part in zip(names, parts, strict=False):
            if "**" in part:
                return True
            if not fnmatchcase(name, part):
                return False
        return len(names) < len(parts)

    return _matched(root, pattern, _walk(root, key, descends))


def _remote(source: str, storage: StorageSpec) -> Found:
    filesystem, path = open_storage(source, storage)

    def entries(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Entry]]:
        for name, info in found.items():
            if info.get("type") != "directory":
                size = info.get("size")
                tag = str(info.get("ETag") or info.get("etag") or "")
                url = str(filesystem.unstrip_protocol(name))
                yield name, Entry(url, -1 if size is None else int(size), tag)

    try:
        info = filesystem.info(path)
    except FileNotFoundError:
        magic = _MAGIC.search(path)
        if not magic:
            return Found("pattern", source, {})
        root = path[: magic.start()].rpartition("/")[0]
        found = ((name, entry) for name, entry in entries(filesystem.glob(path, detail=True)))
        return _matched(root, path.removeprefix(f"{root}/"), ((_below(name, root), entry) for name, entry in found))
    if info["type"] == "directory" or source.endswith("/"):
        below = entries(filesystem.find(path, detail=True))
        return _found("folder", path.rstrip("/"), ((_below(name, path), entry) for name, entry in below))
    ((name, entry),) = entries({path: info})
    return Found("file", path.rpartition("/")[0], {name.rpartition("/")[2]: entry})


def _below(name: str, root: str) -> str:
    return name.removeprefix(root.rstrip("/")).lstrip("/")


def _found(how: str, root: str, below: Iterator[tuple[str, Entry]]) -> Found:
    entries = dict(sorted(below))
    hidden = tuple(name for name in entries if is_hidden(name))
    return Found(how, root, {name: entry for name, entry in entries.items() if not is_hidden(name)}, hidden)


def _matched(root: str, pattern: str, below: Iterator[tuple[str, Entry]]) -> Found:
    """Keep what a pattern matches. It finds hidden names only if a part of the pattern is one."""
    expression = re.compile(glob_translate(pattern))
    names_hidden = is_hidden(pattern)
    found = {name: entry for name, entry in sorted(below) if expression.fullmatch(name)}
    kept = {name: entry for name, entry in found.items() if names_hidden or not is_hidden(name)}
    return Found("pattern", root, kept, tuple(name for name in found if name not in kept), pattern)


def _literal_part(path: str) -> tuple[str, str]:
    """Divide a path into its longest existing folder and the rest, which may be a pattern."""
    root, rest = "/", path.lstrip("/").split("/")
    while len(rest) > 1 and os.path.lexists(os.path.join(root, rest[0])):
        root = os.path.join(root, rest.pop(0))
    return root, "/".join(rest)


def _entry(path: str) -> Entry:
    """Describe what is at a path; never fails."""
    try:
        status = os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            return Entry(path, 0, problem=f"is a symbolic link to {os.readlink(path)}, which leads to no file")
        return Entry(path, 0, problem=f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
        return Entry(path, 0, problem=f"is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file")
    return Entry(path, status.st_size)


def _walk(root: str, key: str, descends: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, Entry]]:
    """Yield the files below a folder. Symbolic links to folders are followed, except hidden ones.

    Raises:
        InputError: a folder is found under two names, or contains itself.
    """
    seen = {_identity(root): root}
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(os.path.join(root, below) if below else root) as opened:
            inside = sorted(opened, key=lambda each: each.name)
        for each in inside:
            name = f"{below}/{each.name}" if below else each.name
            hidden = is_hidden(name)
            if not _is_folder(each, follows=not hidden):
                yield name, _entry(each.path)
            elif descends(name):
                identity = _identity(each.path)
                if not hidden and identity in seen:
                    problem = f"{each.path} and {seen[identity]} are the same folder, through a symbolic link."
                    raise InputError(key, repr(root), "a folder whose files have one name each", problem)
                seen[identity] = each.path
                pending.append(name)


def _is_folder(entry: os.DirEntry[str], *, follows: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follows)
    except OSError:  # a loop of symbolic links
        return False


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
