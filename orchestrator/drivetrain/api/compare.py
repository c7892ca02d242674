"""The differences between two runs: their input, and their results."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from difflib import unified_diff
from itertools import groupby
from pathlib import Path
from typing import Any

from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_workers.protocol.step_record import StepRecord
from drivetrain_workers.records import ledger
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.api.interface import Comparison, Pair
from drivetrain.home import Home
from drivetrain.job.provenance import load_environment
from drivetrain.job.snapshots import stored_names
from drivetrain.job.spec import flatten
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.tracking.loss_plots import draw_losses
from drivetrain.tracking.spool import read_records

# Keys that say where data is: the version of the dataset says what it is.
_PLACE = re.compile(r"data\.(source|eval_source|location|tokenizer\.file|files(\..*)?|storage(\..*)?)")


def compare(first: str, second: str, picture: Path | None = None) -> Comparison:
    """Compare two runs of this home, and draw their losses into the file ``picture``.

    Raises:
        NotFoundError: there is no such run.
        InputError: several runs have this prefix.
        CorruptFileError: a ledger does not hold what was written.
    """
    home = Home.from_environment()
    store = RunStore(home.database_url)
    records = store.get(first), store.get(second)
    folders = home.run(records[0].id), home.run(records[1].id)
    steps = ledger.read(folders[0].ledger), ledger.read(folders[1].ledger)
    losses = _losses(steps[0]), _losses(steps[1])
    same = _same_steps(*losses)
    after = [run[same][1] for run in losses if len(run) > same]
    if picture:
        spools = {record.id: read_records(folder.spool) for record, folder in zip(records, folders, strict=True)}
        draw_losses({run: (r for r in spool if r["op"] == "metrics") for run, spool in spools.items()}, picture)
    versions = (records[0].facts.dataset_version, records[1].facts.dataset_version)
    settings = [flatten(folder.resolved()) for folder in folders]
    if versions[0] is not None and versions[0] == versions[1]:  # wherever it was read from
        settings = [*map(_without_places, settings)]
    return Comparison(
        (records[0].id, records[1].id),
        _different(*settings),
        _different(*(load_environment(folder) for folder in folders)),
        list(_code_diff(*folders)),
        versions,
        (_worlds(steps[0]), _worlds(steps[1])),
        same,
        (after[0], after[1]) if len(after) == 2 else None,
        _results(*records),
    )


def _without_places(settings: JsonObject) -> JsonObject:
    """Leave out where the data is; of a mixture its weights stay."""
    kept = {key: value for key, value in settings.items() if not _PLACE.fullmatch(key)}
    if isinstance(mixture := settings.get("data.source"), list):
        kept["data.source"] = [{**part, "source": ""} for part in mixture]
    return kept


def _different(first: JsonObject, second: JsonObject) -> dict[str, Pair]:
    keys = dict.fromkeys([*first, *second])
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def _code_diff(first: RunFolder, second: RunFolder) -> Iterator[str]:
    names = {name for folder in (first, second) for name in stored_names(folder)}
    for name in sorted(names):
        before, after = _lines(first.code / name), _lines(second.code / name)
        yield from unified_diff(before, after, f"{first.path.name}/{name}", f"{second.path.name}/{name}", lineterm="")


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        content = path.read_bytes()
        return [f"{len(content)} bytes that are no text, with the SHA-256 {hashlib.sha256(content).hexdigest()[:16]}"]


def _losses(steps: list[StepRecord]) -> list[tuple[int, float]]:
    return [(record.step, record.loss) for record in steps]


def _same_steps(first: list[tuple[int, float]], second: list[tuple[int, float]]) -> int:
    pairs = zip(first, second, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _worlds(steps: list[StepRecord]) -> list[tuple[int, int]]:
    groups = groupby(steps, key=lambda record: record.world_size)
    return [(next(iter(group)).step, size) for size, group in groups]


def _results(first: RunRecord, second: RunRecord) -> dict[str, Pair]:
    shown = ("reason", "train_loss", "eval_loss", "tokens_per_s", "peak_bytes")
    found = {key: (getattr(first.facts, key) or None, getattr(second.facts, key) or None) for key in shown}
    for key in ("wall_s", "goodput", "dollars", "energy_kwh"):
        found[key] = (_of_account(first, key), _of_account(second, key))
    return {key: pair for key, pair in found.items() if pair != (None, None)}


def _of_account(record: RunRecord, key: str) -> Any:
    return (record.facts.account or {}).get(key)
