"""The command line's root. What a verb needs is imported when the verb runs, so that ``--help`` takes no time."""

from __future__ import annotations

from typing import Annotated

import typer

from drivetrain.cli import inspect_group, other_groups, run_group
from drivetrain.cli.help import HelpGroup

_EXIT_CODES = """
Exit codes:
  0    success
  1    the run or the command has failed
  2    wrong input, or a run, dataset, checkpoint or recipe that does not exist
  124  `wait` has timed out
  130  the run was cancelled
"""

app = typer.Typer(
    cls=HelpGroup,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distributed training whose result does not depend on which machines fail.",
    epilog=_EXIT_CODES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from drivetrain.cli.version import versions

        typer.echo("\n".join(versions()))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print versions and exit.")
    ] = False,
) -> None:
    pass


run_group.add_to(app)
inspect_group.add_to(app)
other_groups.add_to(app)
