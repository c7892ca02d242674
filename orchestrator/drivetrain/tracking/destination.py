"""The interface of a tracking server; a tracker other than MLflow implements it."""

from __future__ import annotations

from typing import Protocol

from drivetrain.tracking.totals import Record


class Destination(Protocol):
    """The destination of the records of one run. Every operation is idempotent.

    A record is a dictionary with the key ``op``:

    ========== =========================================================================
    op         other keys
    ========== =========================================================================
    begin      none; the run is running, possibly again
    params     values
    tags       values; a later value replaces an earlier one
    dataset    name, version, folder
    metrics    series, step, time_ms, values
    artifact   path, folder (None for the root)
    checkpoint step, location, values, time_ms
    register   name, folder
    end        status (FINISHED, FAILED or KILLED), time_ms
    ========== =========================================================================
    """

    @property
    def identity(self) -> dict[str, str]:
        """Keys that identify the run on the tracking server."""

    def ship(self, records: list[Record]) -> None:
        """Log all records in order, or raise; a repeated call logs nothing twice."""
