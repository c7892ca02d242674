"""The command `drivetrain`: parses its arguments, and says so when an environment has only the client."""

from __future__ import annotations

import sys
import warnings
from importlib import metadata

from drivetrain_pipelines.user_code import training_is_installed

from drivetrain.cli.app import app


def main() -> None:
    """Run the command line; a verb that needs packages of ``drivetrain[train]`` exits with 2 where they are missing."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # without the line of code
    try:
        app()
    except ModuleNotFoundError as error:
        if training_is_installed():
            raise
        print(
            f"error: this environment has only the client of Drivetrain {metadata.version('drivetrain')}; there is no "
            f"{error.name}. Run and inspect jobs on this machine with: pip install 'drivetrain[train]'. A server is "
            "reached with --server URL or DRIVETRAIN_SERVER.",
            file=sys.stderr,
        )
        sys.exit(2)
