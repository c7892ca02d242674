"""The command `drivetrain`: parses its arguments, and reports what its environment lacks as one line."""

from __future__ import annotations

import sys
import warnings

from drivetrain_pipelines.storage.proxies import reach_loopback_directly
from drivetrain_pipelines.user_code import training_is_installed

from drivetrain.cli.app import app
from drivetrain.cli.errors import FAILED, WRONG_INPUT, describe
from drivetrain.cli.streams import finish_output, prepare_streams
from drivetrain.errors import ClientOnlyError


def main() -> None:
    """Run the command line; a verb that needs packages of ``drivetrain[train]`` exits with 2 where they are missing."""
    prepare_streams()
    reach_loopback_directly()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # without the line of code
    sys.exit(finish_output(_run()))


def _run() -> int:
    try:
        app()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED
    except ModuleNotFoundError as error:
        if training_is_installed():
            raise
        print(f"error: {ClientOnlyError(error.name or 'a package')}", file=sys.stderr)
        return WRONG_INPUT
    except OSError as error:  # of a stream, or of a file of this user
        print(f"error: {describe(error)}", file=sys.stderr)
        return FAILED
    return 0
