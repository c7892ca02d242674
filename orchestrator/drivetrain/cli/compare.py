"""`drivetrain diff`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import InputError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drivetrain.api.interface import Comparison
from drivetrain.cli.place import runs_of, show_place
from drivetrain.cli.tables import show
from drivetrain.cli.words import plural


def diff_runs(server: str | None, first: str, second: str, picture: str | None, as_json: bool) -> None:
    """Print the differences between two runs."""
    with runs_of(server) as runs:
        if picture and not Path(picture).absolute().parent.is_dir():
            raise InputError("--picture", repr(picture), "a file in an existing folder")
        found = runs.diff(first, second, Path(picture) if picture else None)
        show_place(runs, as_json)
        if as_json:
            print(json.dumps(asdict(found)))
            return
        _show(found, Console())


def _show(found: Comparison, console: Console) -> None:
    rows: list[tuple[str, Any, Any]] = [(key, *pair) for key, pair in found.settings.items()]
    rows += [(f"version of {name}", *pair) for name, pair in found.environment.items()]
    if not found.same_data:
        rows.append(("data version", *found.data))
    rows.append(("world size", _worlds(found.worlds[0]), _worlds(found.worlds[1])))
    rows += [(key, *pair) for key, pair in found.results.items()]
    table = Table("", *found.runs, box=None, pad_edge=False)
    for name, *values in rows:
        table.add_row(escape(name), *(escape(_text(value)) for value in values))
    show(table)
    for line in found.code:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.same_input:
        console.print("settings, code, data and versions are equal")
    console.print(_verdict(found), highlight=False)


def _verdict(found: Comparison) -> str:
    if not found.same_steps:
        return "the losses differ from the first step"
    text = f"the losses of the first {plural(found.same_steps, 'step')} are bitwise equal"
    if found.losses:
        text += f"; at step {found.same_steps + 1} they are {found.losses[0]!r} and {found.losses[1]!r}"
    return text


def _worlds(stretches: list[tuple[int, int]]) -> str:
    return ", ".join(f"{size} from step {step}" for step, size in stretches)


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
