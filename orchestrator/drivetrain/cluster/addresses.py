"""Addresses of Ray clusters: the one to join, and what answers there."""

from __future__ import annotations

import os
from pathlib import Path

from drivetrain_pipelines.errors import InputError

from drivetrain.cluster import ray_internals
from drivetrain.cluster.ray_internals import Answer

_VARIABLE = "RAY_ADDRESS"
_ALLOWED = "HOST:PORT of the head of a Ray cluster that runs, or auto"
NEW = "local"  # Ray's word for a cluster that `connect` starts
FOUND = "auto"  # and for one that runs on this machine


def find_cluster(address: str | None, known: Path) -> str | None:
    """Return the address of the Ray cluster to join; None to start one.

    Args:
        address: of a cluster; ``local`` for a new one; ``auto`` for that of ``RAY_ADDRESS``, else the one of this
            machine; None for the same, where there is one.
        known: file with the address of the cluster that Drivetrain's server uses, which is tried first.

    Raises:
        InputError: no Ray cluster runs at the address, or it does not accept this process.
    """
    variable = os.environ.get(_VARIABLE, "").strip()
    named = address not in (None, "", FOUND)
    where, given = ("--address", address or "") if named or not variable else (_VARIABLE, variable)
    if given == NEW and address != FOUND:
        return None
    if given not in ("", FOUND, NEW):
        _check_form(where, given)
        check_answer(where, given, ray_internals.ask(given))
        return given
    for file in (known, ray_internals.address_file()):
        if (found := recorded(file)) and (answer := ray_internals.ask(found)).runs:
            check_answer(str(file), found, answer)
            return found
    if FOUND in (address, given):
        fix = "Start one with `drivetrain server` or `ray start --head`."
        raise InputError(where, f"{given}, and no Ray cluster runs on this machine", _ALLOWED, fix)
    return None


def recorded(file: Path) -> str | None:
    """Return the address in a file. The cluster may no longer run: one that was killed leaves the file behind."""
    try:
        return file.read_text().split()[0]
    except (OSError, ValueError, IndexError):
        return None


def check_answer(where: str, address: str, answer: Answer) -> None:
    """Check that a Ray cluster answers, and authenticate with Ray's token if it asks for one.

    Raises:
        InputError: it does not answer, asks for a token that is not here, or has another version.
    """
    if not answer.runs:
        raise InputError(where, f"{address}, where no Ray cluster answers", _ALLOWED, answer.problem)
    if answer.wants_token:
        if not ray_internals.has_token():
            raise InputError(
                where,
                f"{address}, whose Ray cluster asks for a token, and none is here",
                "a cluster whose token this user has",
                "Set RAY_AUTH_TOKEN, or copy ~/.ray/auth_token from the head.",
            )
        ray_internals.enable_token_auth()
        answer = ray_internals.ask(address)
        if answer.wants_token:
            fix = "Compare RAY_AUTH_MODE, RAY_AUTH_TOKEN and ~/.ray/auth_token with those of the head."
            raise InputError(where, f"{address}, whose Ray cluster refuses the token of this user", "its token", fix)
    if answer.version != ray_internals.VERSION:
        given = f"{address}, a cluster of Ray {answer.version}"
        raise InputError(where, given, f"one of Ray {ray_internals.VERSION}, which is installed here")


def _check_form(where: str, address: str) -> None:
    host, found, port = address.rpartition(":")
    if "://" in address:
        fix = (
            "Give the address of the GCS, as `ray start --head` prints it, not that of the dashboard or of Ray Client."
        )
        raise InputError(where, repr(address), _ALLOWED, fix)
    if not (found and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16 and host.isprintable()):
        raise InputError(where, repr(address), _ALLOWED, "The port of a head is 6379 by default.")
    if any(character.isspace() or character in "/@?#" for character in host):
        raise InputError(where, repr(address), _ALLOWED)


def is_loopback(address: str) -> bool:
    """Return whether a cluster listens only on loopback, where Ray would not look for it."""
    return address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")
