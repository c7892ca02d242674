"""The interface of a tracking server; a tracker other than MLflow implements it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from drivetrain.tracking.totals import Record


class UnavailableError(Exception):
    """The tracking server accepts nothing at present. All records are sent again later."""


class DeletedError(Exception):
    """The run, or what contains it, was deleted on the tracking server. Nothing is sent until it is restored."""


@dataclass(frozen=True)
class Shipment:
    """What became of records.

    Attributes:
        late: by index of the record, why some of it has not arrived; it is sent again later.
        refused: by name, why something can never arrive.
        renamed: by name, how it is called on the tracking server, and why.
    """

    late: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


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
        """Keys that identify the run on the tracking server. Another run gets all records, from the first on."""

    def ship(self, records: Sequence[Record]) -> Shipment:
        """Log all records in order; a repeated call logs nothing twice. One record never holds up the others.

        Raises:
            DeletedError: the run was deleted.
            UnavailableError: the tracking server accepts nothing. Any other exception has the same effect.
        """
