"""Where a verb finds its runs: in the home of this machine, or on a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from drivetrain.api.connect import connect
from drivetrain.api.interface import Runs
from drivetrain.cli.errors import errors

ONLY_LOCAL = "This verb works on runs of this machine."


@contextmanager
def runs_of(server: str | None, address: str | None = None) -> Iterator[Runs]:
    """Open the runs of a server, or those of this machine; print an expected error as one line."""
    with errors(), connect(server, address=address) as runs:
        yield runs


def show_place(runs: Runs, as_json: bool = False) -> None:
    """Print on stderr which place has answered; nothing where a program reads the answer."""
    if not as_json:
        sys.stdout.flush()
        Console(stderr=True, soft_wrap=True).print(Text(runs.where, "dim"))
