"""Predictions of a trained model, made in a separate process: for local runs, and for clients of a server."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_workers.model_processes import requests
from drivetrain_workers.model_processes.requests import PredictRequest
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.api.given_inputs import expand
from drivetrain.job.spec import stored_spec

if TYPE_CHECKING:
    from drivetrain.home import Home
    from drivetrain.runs.store import RunRecord

MAX_INPUT_BYTES = 32 << 20  # of all inputs of one request to a server
_DEADLINE_S = 300.0  # of a request to a server: a client waits for it
_SUFFIX = re.compile(r"(\.[A-Za-z0-9]{1,10}){1,2}$")  # of a file: its format


@dataclass(frozen=True)
class Input:
    """An input that travels to a server.

    Attributes:
        name: of the file, or the text itself.
        content: of the file; None for a text.
    """

    name: str
    content: bytes | None = None

    @classmethod
    def of(cls, given: str) -> Self:
        """Return a file with its content, where there is one of this name; else a text."""
        try:
            if Path(given).is_file():
                return cls(given, Path(given).read_bytes())
        except OSError:  # a long text is no name of a file
            pass
        return cls(given)

    def to_json(self) -> JsonObject:
        """Return what `from_json` reads."""
        return {"name": self.name} | (
            {} if self.content is None else {"content": base64.b64encode(self.content).decode()}
        )


def begun(home: Home, record: RunRecord) -> tuple[RunFolder, str]:
    """Return folder and dataset of a run that has begun to train. Raises InputError for another one."""
    if record.facts.dataset is None:
        raise InputError("RUN", repr(record.id), "a run that has begun to train", "This one has prepared no data yet.")
    return home.run(record.id), record.facts.dataset


def predict(
    home: Home,
    record: RunRecord,
    inputs: Sequence[str],
    pictures: str,
    max_tokens: int | None,
    temperature: float | None,
    seed: int,
) -> Sequence[JsonObject]:
    """Ask the newest checkpoint of a local run. Args, raises: see `drivetrain.api.interface.Runs.predict`."""
    folder, dataset = begun(home, record)
    asked = expand(inputs, stored_spec(folder).data)
    return requests.predict(
        PredictRequest(str(folder.path), dataset, asked, pictures, max_tokens, temperature, seed=seed)
    )


def check_size(inputs: Iterable[Input]) -> None:
    """Raise InputError where inputs are too large for a server."""
    size = sum(len(each.name.encode() if each.content is None else each.content) for each in inputs)
    if size > MAX_INPUT_BYTES:
        limit = f"at most {MAX_INPUT_BYTES >> 20} MiB in one request to a server"
        raise InputError("INPUT", f"{size / (1 << 20):.0f} MiB", limit, "Ask about fewer files at a time.")


def predict_for_client(
    home: Home,
    record: RunRecord,
    inputs: Sequence[Input],
    max_tokens: int | None,
    temperature: float | None,
    seed: int,
    deadline_s: float = _DEADLINE_S,
) -> Sequence[JsonObject]:
    """Ask the newest checkpoint about inputs that a client has sent.

    Every input becomes a file in a temporary folder: a text is never read as the name of a file of the server.

    Raises:
        CheckpointError: as for local runs; or the model has not answered within ``deadline_s``.
        InputError: as for local runs; or the model makes images.
    """
    run, dataset = begun(home, record)
    check_size(inputs)
    with tempfile.TemporaryDirectory(prefix="drivetrain-predict-") as made:
        names = dict(_write(Path(made), inputs))
        pictures = Path(made) / "pictures"
        request = PredictRequest(
            str(run.path), dataset, [*names], str(pictures), max_tokens, temperature, seed=seed, timeout_s=deadline_s
        )
        try:
            rows = requests.predict(request)
        except InputError as error:  # which names the files as they are called here
            raise InputError(*(_as_sent(text, names) for text in error.args)) from None
        if pictures.exists():
            fix = "Run `drivetrain predict` on the server's machine."
            raise InputError("RUN", f"{record.id}, whose model makes images", "a model whose answers are data", fix)
        return [{**row, "input": names.get(row["input"], row["input"])} for row in rows]


def _write(folder: Path, inputs: Sequence[Input]) -> Iterable[tuple[str, str]]:
    """Write each input into a file, and yield its path and its name."""
    for number, each in enumerate(inputs):
        suffix = _SUFFIX.search(each.name)
        path = folder / f"{number}{'.txt' if each.content is None else suffix[0] if suffix else ''}"
        path.write_bytes(each.name.encode() if each.content is None else each.content)
        yield str(path), each.name


def _as_sent(text: str, names: dict[str, str]) -> str:
    for path, name in names.items():
        text = text.replace(path, name)
    return text
