"""Tables on a terminal or in a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

_LINE = 10_000  # columns; a pipe has no width


def show(table: Table, whole: bool = False) -> None:
    """Print a table: in a pipe whole, on a terminal folded into its width.

    Args:
        whole: on a terminal, too, for a table of figures, which make no sense when they are cut.
    """
    console = Console()
    if not whole and console.is_terminal:
        console.print(table, highlight=False)
        return
    wide = Console(
        width=max(console.width, console.measure(table, options=console.options.update(max_width=_LINE)).maximum)
    )
    with wide.capture() as captured:
        wide.print(table, highlight=False)
    for line in captured.get().splitlines():
        print(line.rstrip())
