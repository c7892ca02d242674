"""Metrics, parameters and tags as MLflow accepts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH, _validate_metric

from drivetrain.tracking.mlflow_names import accepted_name
from drivetrain.tracking.totals import Record

_STEPS = range(-(1 << 63), 1 << 63)  # which MLflow's validation does not check
_CUT = "..."


@dataclass(frozen=True)
class Entry:
    """One metric, parameter or tag.

    Attributes:
        number: index of its record.
        name: with its kind, for the user: ``metric acc@1``.
        entity: with the name in MLflow.
        change: how MLflow's name or value differs; empty if they are equal.
    """

    number: int
    name: str
    entity: Metric | Param | RunTag
    change: str = ""


def entries_of(number: int, record: Record) -> Iterator[Entry]:
    """Yield the entries of a record with the op ``metrics``, ``params`` or ``tags``."""
    make = _MAKE[record["op"]]
    for name, value in record["values"].items():
        yield make(number, name, value, record)


def check(entry: Entry) -> None:
    """Check what no rename can change. Raises MLflow's errors, ValueError and OverflowError."""
    match entry.entity:
        case Metric(key=key, value=value, timestamp=timestamp, step=step):
            _validate_metric(key, value, timestamp, step)  # type: ignore[no-untyped-call]  # MLflow's
            float(value)
            if step not in _STEPS or timestamp not in _STEPS:
                raise ValueError(f"step {step} at {timestamp} ms does not fit into 64 bits")


def log(client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
    """Log all entries, which MLflow's client splits into requests of the size that it allows."""
    entities = [entry.entity for entry in entries]
    client.log_batch(
        run_id,
        metrics=[each for each in entities if isinstance(each, Metric)],
        params=[each for each in entities if isinstance(each, Param)],
        tags=[each for each in entities if isinstance(each, RunTag)],
    )


def kept_value(client: MlflowClient, run_id: str, entry: Entry) -> str | None:
    """Return the other value that MLflow already has of a parameter, which it never changes; None without one."""
    if not isinstance(entry.entity, Param):
        return None
    value: str | None = client.get_run(run_id).data.params.get(entry.entity.key)
    return None if value == entry.entity.value else value


def renamed(name: str, key: str) -> str:
    """Return how MLflow's name differs; empty if it is equal."""
    return "" if name == key else f"is called {key!r} in MLflow, which does not accept this name"


def _metric(number: int, name: str, value: float, record: Record) -> Entry:
    key = accepted_name(name)
    return Entry(number, f"metric {name}", Metric(key, value, record["time_ms"], record["step"]), renamed(name, key))


def _param(number: int, name: str, value: str, _: Record) -> Entry:
    key, text = accepted_name(name), _storable(value, MAX_PARAM_VAL_LENGTH)
    return Entry(number, f"parameter {name}", Param(key, text), renamed(name, key) or _changed(value, text))


def _tag(number: int, name: str, value: str, _: Record) -> Entry:
    key, text = accepted_name(name), _storable(value, MAX_TAG_VAL_LENGTH)
    return Entry(number, f"tag {name}", RunTag(key, text), renamed(name, key) or _changed(value, text))


_MAKE: dict[str, Callable[[int, str, Any, Record], Entry]] = {
    "metrics": _metric,
    "params": _param,
    "tags": _tag,
}


def _storable(value: str, limit: int) -> str:
    """Return a text without the characters that no database stores, and not longer than MLflow accepts."""
    text = "".join("?" if each == "\0" or "\ud800" <= each <= "\udfff" else each for each in value)
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT


def _changed(value: str, text: str) -> str:
    if len(value) > len(text):
        return f"is cut to {len(text)} of {len(value)} characters"
    return "" if value == text else "has ? where a character cannot be stored"
