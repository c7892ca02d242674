"""Names that a module of a job cannot have, because the process that imports it may have imported another one."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

_REQUIRED_NAME = re.compile(r"[\w.-]+")


def is_shadowed(top: str, search_path: list[str]) -> bool:
    """Return whether a top-level name is taken by Python's standard library, or by a package that Drivetrain uses.

    Args:
        search_path: where installed modules are searched.
    """
    if top in sys.stdlib_module_names:
        return True
    if PathFinder.find_spec(top, search_path) is None:
        return False  # the usual case; reading the metadata of all packages takes a second
    return not _distributions().get(top, set()).isdisjoint(_used())


@lru_cache(maxsize=1)
def _distributions() -> dict[str, set[str]]:
    return {top: {_canonical(name) for name in names} for top, names in packages_distributions().items()}


@lru_cache(maxsize=1)
def _used() -> frozenset[str]:
    """Return the installed distributions that Drivetrain requires, directly or not, with all extras."""
    found, waiting = set[str](), ["drivetrain"]
    while waiting:
        name = _canonical(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        optional = name != "drivetrain"
        wanted = (line for line in lines if not (optional and "extra ==" in line))
        waiting += [match[0] for line in wanted if (match := _REQUIRED_NAME.match(line))]
    return frozenset(found)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
