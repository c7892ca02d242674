"""Tables on a terminal or in a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def show(table: Table) -> None:
    """Print a table as wide as it is: nothing is cut where a pipe has, or a terminal is, but 80 columns."""
    console = Console()
    wide = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    Console(width=max(console.width, wide)).print(table, highlight=False)
