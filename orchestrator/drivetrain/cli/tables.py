"""Tables, for terminals and pipes.

In a pipe every row is one whole line. On a terminal a table fits the width: the least important columns are left out
first, then long texts are wrapped; nothing is cut. Colors carry meaning only: green is success, red failure, yellow
waiting. There are none in a pipe, or with NO_COLOR.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

_LINE = 10_000  # columns; a pipe has no width
_GAP = 2  # between columns
_WRAPPED = 16  # columns that a text which may be wrapped takes at least

OK, FAILED, WAITING = "green", "red", "yellow"
_WAITING_PHASES = ("queued", "ready", "placing", "waiting")

Cell = str | tuple[str, str]  # a text, or a text with its color


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its header.
        right: whether it is aligned to the right, as numbers are.
        wrap: whether its texts may be wrapped.
        optional: 0 for a column that is always shown; of others, the highest number is left out first.
    """

    title: str
    right: bool = False
    wrap: bool = False
    optional: int = 0


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
    """Print rows below a header."""
    cells = [[_text(cell) for cell in row] for row in rows]
    console = Console()
    shown = list(range(len(columns)))
    if console.is_terminal:
        shown = _fitting(columns, cells, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for number in shown:
        column = columns[number]
        table.add_column(
            column.title, justify="right" if column.right else "left", no_wrap=not column.wrap, overflow="fold"
        )
    for row in cells:
        table.add_row(*(row[number] for number in shown))
    show(table)


def show(table: Table, whole: bool = False) -> None:
    """Print a table of Rich: in a pipe whole, on a terminal folded into its width.

    Args:
        whole: do not fold it on a terminal either: figures make no sense when they are folded.
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


def phase_cell(phase: str, reason: str) -> Cell:
    """Return the phase of a run in its color."""
    if phase == "ended":
        return phase, OK if reason == "completed" else WAITING if reason == "cancelled" else FAILED
    return (phase, WAITING) if phase in _WAITING_PHASES else phase


def _fitting(columns: Sequence[Column], rows: list[list[Text]], width: int) -> list[int]:
    """Return the numbers of the columns to show."""
    shown = list(range(len(columns)))
    while sum(_width(columns[n], [row[n] for row in rows]) + _GAP for n in shown) - _GAP > width:
        last = max(shown, key=lambda n: columns[n].optional)
        if not columns[last].optional:
            break
        shown.remove(last)
    return shown


def _width(column: Column, cells: list[Text]) -> int:
    """Return the least width of a column."""
    widest = max((cell.cell_len for cell in cells), default=0)
    return max(len(column.title), min(widest, _WRAPPED) if column.wrap else widest)


def _text(cell: Cell) -> Text:
    return Text(cell) if isinstance(cell, str) else Text(*cell)
