"""Rules of ``.gitignore`` files, applied as git does: a deeper file takes precedence, and its last match counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pathspec
from drivetrain_pipelines.errors import InputError

_FILE = ".gitignore"


@dataclass(frozen=True)
class Rules:
    """The rules of one file, for paths below its folder."""

    base: Path
    patterns: pathspec.GitIgnoreSpec

    @classmethod
    def of(cls, folder: Path) -> Rules | None:
        """Return the rules of a folder, if it has any.

        Raises:
            InputError: a line is not a pattern.
        """
        file = folder / _FILE
        if not file.is_file():
            return None
        # File names may be invalid UTF-8; Python decodes them in the same way.
        lines = file.read_text("utf-8", "surrogateescape").splitlines()
        try:
            return cls(folder, pathspec.GitIgnoreSpec.from_lines(lines))
        except ValueError as error:
            raise InputError(str(file), str(error), "patterns of git") from error


Nested = tuple[Rules, ...]  # the outermost first


def repository(folder: Path) -> Path | None:
    """Return the root of the git repository that holds a folder, if there is one."""
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), None)


def outer_rules(folder: Path) -> Nested:
    """Return the rules of the folders above, up to the repository; none where they ignore the folder itself."""
    root = repository(folder)
    if root is None or root == folder:
        return ()
    above = [each for each in reversed(folder.parents) if each.is_relative_to(root)]
    rules: Nested = ()
    for each, inner in zip(above, [*above[1:], folder], strict=True):
        rules = extended(rules, each)
        if ignores(rules, inner, is_folder=True):
            return ()
    return rules


def extended(rules: Nested, folder: Path) -> Nested:
    """Return rules with those of one more folder."""
    own = Rules.of(folder)
    return (*rules, own) if own else rules


def ignores(rules: Nested, path: Path, is_folder: bool) -> bool:
    """Return whether rules ignore a path."""
    for each in reversed(rules):
        name = path.relative_to(each.base).as_posix() + "/" * is_folder
        if (decided := each.patterns.check_file(name).include) is not None:
            return decided
    return False
