"""The choice between the runs of this machine and those of a server."""

from __future__ import annotations

import os

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.user_code import training_is_installed

from drivetrain.api.interface import Runs
from drivetrain.errors import ClientOnlyError


def connect(server: str | None = None, token: str | None = None, address: str | None = None) -> Runs:
    """Return the runs of a server, or those of this machine's home.

    Args:
        server: URL of a server; ``DRIVETRAIN_SERVER`` by default. Without both, the runs are local.
        token: for the server; see `Client`.
        address: of the Ray cluster on which local runs start; see `drivetrain.api.session.connect`.

    Raises:
        InputError: there is no token for the server.
        ClientOnlyError: the runs are local, and only the client is installed.
    """
    named = server or os.environ.get("DRIVETRAIN_SERVER")
    if named:
        from drivetrain.api.client import Client  # here: local runs need no HTTP

        return Client(named, token)
    if token:
        raise InputError("token", "a token without a server", "both", "Give the URL of a server.")
    require_training()
    from drivetrain.api.local import LocalRuns  # here: a client of a server need not have its packages

    return LocalRuns(address)


def require_training() -> None:
    """Check that the packages that run jobs are installed.

    Raises:
        ClientOnlyError: they are not.
    """
    if not training_is_installed():
        raise ClientOnlyError("torch")
