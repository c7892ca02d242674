"""YAML as people expect it: numbers are read as in YAML 1.2, and no key stands twice in one section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from drivetrain_pipelines.errors import InputError


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where ``010`` is 8, ``1:30`` is 90, ``no`` is false and ``3e-4`` is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


# The core schema of YAML 1.2, https://yaml.org/spec/1.2.2/#103-core-schema, and merge keys.
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^<<$", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def read_text(path: Path, allowed: str) -> str:
    """Read a file that a user wrote.

    Args:
        allowed: what the file should be, for the error message.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(str(path), "a file that cannot be read", allowed, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        fix = f"The byte {error.start} is not UTF-8: save the file as UTF-8."
        raise InputError(str(path), "text in another encoding", allowed, fix) from error


def parse_yaml(text: str, where: str, allowed: str) -> Any:
    """Return what a YAML text holds; ``where`` names the text in errors. Raises `InputError`."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError(where, "text that is not YAML", allowed, _in_one_line(error)) from error


def _in_one_line(error: Exception) -> str:
    """Return what is wrong and where, without the quoted text that PyYAML adds."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark, context = error.problem_mark, f"{error.context}: " if error.context else ""
        return f"Line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"
    if isinstance(error, RecursionError):
        return "It is nested too deeply."
    return " ".join(str(error).split())[:300]
