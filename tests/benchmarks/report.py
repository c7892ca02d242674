"""Reports of benchmarks: a table of ratios on the terminal and a JSON file of all figures."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_FOLDER = Path(__file__).parents[2] / "build" / "bench"


def report(name: str, columns: list[str], rows: list[list[str]], figures: dict[str, Any]) -> None:
    """Print a table and write ``build/bench/NAME.json``."""
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    _FOLDER.mkdir(parents=True, exist_ok=True)
    path = _FOLDER / f"{name}.json"
    path.write_text(json.dumps({"machine": platform.platform(), **figures}, indent=1))
    print(f"written to {path}")
