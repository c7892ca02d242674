"""The source tree: small files and classes, in folders with a docstring that lists their files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = [
    REPOSITORY / "orchestrator" / "drivetrain",
    REPOSITORY / "workers" / "drivetrain_workers",
    REPOSITORY / "pipelines" / "drivetrain_pipelines",
]
RECIPES = REPOSITORY / "workers" / "drivetrain_workers" / "recipes"  # its folders are jobs, not packages
FILES = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
FOLDERS = [folder for folder in sorted({path.parent for path in FILES}) if RECIPES not in folder.parents]

MAX_LOOSE_FILES = 3
MAX_FILE_LINES = 400
MAX_CLASS_LINES = 200
_NAMED_FILE = re.compile(r"^(\w+): \S", re.MULTILINE)


def modules(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")} - {"__init__"}


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("package", PACKAGES, ids=relative)
def test_few_files_are_in_the_root(package: Path) -> None:
    assert len(modules(package)) <= MAX_LOOSE_FILES, sorted(modules(package))


def test_no_file_is_long() -> None:
    lines = {relative(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_no_class_is_long() -> None:
    lines = {
        f"{relative(path)}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert {name: count for name, count in lines.items() if count > MAX_CLASS_LINES} == {}


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_a_folder_lists_its_files(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert docstring
    _, _, lines = docstring.partition("\n")
    assert set(_NAMED_FILE.findall(lines)) == modules(folder)
