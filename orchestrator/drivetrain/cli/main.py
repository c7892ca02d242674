"""The command `drivetrain`: parses its arguments, and says so when an environment has only the client."""

from __future__ import annotations

import sys
import warnings

from drivetrain_pipelines.user_code import training_is_installed

from drivetrain.cli.app import app
from drivetrain.cli.errors import WRONG_INPUT
from drivetrain.errors import ClientOnlyError


def main() -> None:
    """Run the command line; a verb that needs packages of ``drivetrain[train]`` exits with 2 where they are missing."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # without the line of code
    try:
        app()
    except ModuleNotFoundError as error:
        if training_is_installed():
            raise
        print(f"error: {ClientOnlyError(error.name or 'a package')}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
