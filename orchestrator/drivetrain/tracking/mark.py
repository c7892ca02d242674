"""What of a spool a run on the tracking server has received."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain.tracking.destination import Shipment


@dataclass(frozen=True)
class Mark:
    """What one run on the tracking server has received. It means nothing for another run.

    Attributes:
        offset: all records before it have been sent, except the late ones.
        identity: see `Destination`; empty before the first connection.
        late: by offset of a record, why some of it has not arrived yet.
        refused, renamed: see `Shipment`.
    """

    offset: int = 0
    identity: Mapping[str, str] = field(default_factory=dict)
    late: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def of(self, identity: Mapping[str, str]) -> Mark:
        """Return the mark of the run with this identity: another one than before has received nothing."""
        if self.identity and self.identity != identity:
            return Mark(identity=identity)
        return Mark(self.offset, identity, self.late, self.refused, self.renamed)

    def after(self, shipment: Shipment, offsets: Sequence[int], end: int) -> Mark:
        """Return the mark after a shipment of the records at ``offsets``, which end before ``end``."""
        late = {offset: why for offset, why in self.late.items() if offset not in offsets}
        late |= {offsets[number]: why for number, why in shipment.late.items()}
        refused, renamed = {**self.refused, **shipment.refused}, {**self.renamed, **shipment.renamed}
        return Mark(max(self.offset, end), self.identity, late, refused, renamed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is different on the tracking server, and why."""
        refused = (f"{name} is not accepted: {why}" for name, why in self.refused.items())
        return (*refused, *(f"{name} {how}" for name, how in self.renamed.items()))

    def to_json(self) -> JsonObject:
        """Return the mark as JSON, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """Return the mark from the output of `to_json`, or from an offset, which earlier versions stored.

        Raises:
            ValueError, TypeError, AttributeError: another version wrote it.
        """
        if isinstance(found, int):
            return cls(found)
        late = {int(offset): str(why) for offset, why in found["late"].items()}
        return cls(int(found["offset"]), found["identity"], late, found["refused"], found["renamed"])
