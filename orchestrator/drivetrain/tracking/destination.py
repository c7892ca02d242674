"""The interface that a tracker other than MLflow implements."""

from __future__ import annotations

from typing import Protocol

from drivetrain.tracking.totals import Record


class Destination(Protocol):
    """Where the records of one run are shipped to. Every operation may be repeated.

    A record is a dictionary with the key ``op``:

    ========== =========================================================================
    op         other keys
    ========== =========================================================================
    begin      none; the run is running (again)
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
        """Where people find the run there."""

    def ship(self, records: list[Record]) -> None:
        """Log all of them in order, or raise; repeating is harmless."""
