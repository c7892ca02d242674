"""Loading and validation of a job file, before anything starts."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.raw.checks import check_data, check_location
from drivetrain_pipelines.raw.sources import check_source
from drivetrain_pipelines.spec import Spec
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.storage.yaml_files import parse_yaml, read_text
from drivetrain_workers.engine.batching import solve
from drivetrain_workers.engine.deepspeed_config import check_passthrough
from drivetrain_workers.spec import DATA_FACTS
from pydantic import ValidationError

from drivetrain.job.code_checks import check_arguments, check_function
from drivetrain.job.spec import JobSpec
from drivetrain.job.validation_errors import first_error, models_in

RECIPES = "drivetrain_workers.recipes"


@dataclass(frozen=True)
class Job:
    """A checked job.

    Attributes:
        written: the text of the job file.
        spec: the resolved job: defaults filled in, overrides applied, paths absolute.
        folder: the job file's folder, which holds the user's code.
    """

    written: str
    spec: JobSpec
    folder: Path

    @property
    def code_files(self) -> list[Path]:
        """Python files in the job's folder, as relative paths; each run stores a snapshot of them."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*.py"))
        return sorted(path for path in found if not any(part.startswith((".", "__pycache__")) for part in path.parts))

    @property
    def code_version(self) -> str:
        """Digest of the user's code."""
        digest = hashlib.sha256()
        for path in self.code_files:
            digest.update(str(path).encode() + b"\0" + (self.folder / path).read_bytes() + b"\0")
        return digest.hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """Identity of the job: digest of the resolved spec and the code."""
        return hashlib.sha256(f"{self.spec.model_dump_json()}{self.code_version}".encode()).hexdigest()[:16]


def load_job(path: str, overrides: Iterable[str] = ()) -> Job:
    """Load a job file or a recipe by name, apply ``--set`` overrides and validate the job.

    Raises:
        InputError: with the key or file, the value, and the allowed values.
    """
    file = find_job_file(path)
    written = read_text(file, "a YAML job file")
    document = parse_yaml(written, str(file), "a YAML job file")
    if not isinstance(document, dict):
        raise InputError(str(file), type(document).__name__, "a mapping with the sections of a job")
    for override in overrides:
        _override(document, override)
    spec = _validate(document)
    _warn_of_renamed_keys(document)
    return Job(written, _check(spec, file.parent), file.parent)


def find_job_file(path: str) -> Path:
    """Find the job file for a path: a file, a folder with ``job.yaml``, or the name of a recipe."""
    given = Path(path).expanduser()
    candidates = [given, given / "job.yaml", recipes_folder() / path.replace("-", "_") / "job.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    recipes = sorted(p.parent.name.replace("_", "-") for p in recipes_folder().glob("*/job.yaml"))
    close = difflib.get_close_matches(path, recipes, n=1)
    fix = f"Did you mean {close[0]}?" if close else "" if given.exists() else "The file does not exist."
    raise InputError("JOB", repr(path), f"a job file, a folder with job.yaml, or a recipe ({', '.join(recipes)})", fix)


def recipes_folder() -> Path:
    """Return the folder of the bundled recipes."""
    spec = importlib.util.find_spec(RECIPES)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _override(document: JsonObject, override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise InputError("--set", repr(override), "section.key=value")
    *sections, last = key.split(".")
    target: Any = document
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise InputError(f"--set {key}", repr(value), f"a key inside a section; {section} is {target!r}")
    target[last] = parse_yaml(value, f"--set {key}", "a value in YAML")


def _validate(document: JsonObject) -> JobSpec:
    try:
        return JobSpec.model_validate(document)
    except ValidationError as error:
        raise first_error(error.errors()) from error


def _warn_of_renamed_keys(document: JsonObject) -> None:
    for name in document.keys() & JobSpec.model_fields.keys():
        models = [model for model in models_in(JobSpec.model_fields[name].annotation) if issubclass(model, Spec)]
        for old, new in (pair for model in models for pair in model.renamed.items()):
            if isinstance(document[name], dict) and old in document[name]:
                message = f"{name}.{old} is now called {name}.{new}; the old name still works"
                warnings.warn(message, FutureWarning, stacklevel=3)


def _check(spec: JobSpec, folder: Path) -> JobSpec:
    """Check everything that needs several sections or the file system; return the spec with absolute paths."""
    for workers in range(spec.resources.min_workers, spec.resources.max_workers + 1):
        solve(spec.training.global_batch_size, spec.training.micro_batch_size, workers)
    check_passthrough(spec.training)
    for key, function in (
        ("model.factory", spec.model.factory),
        ("model.loss", spec.model.loss),
        ("model.weight", spec.model.weight),
        ("model.metrics", spec.model.metrics),
        ("model.predict", spec.model.predict),
        ("model.outcomes", spec.model.outcomes),
        ("model.assess", spec.model.assess),
        ("baseline.function", None if isinstance(spec.baseline, bool) else spec.baseline.function),
        ("data.reader", spec.data.reader),
        ("data.transform", spec.data.transform),
        ("data.online.transform", spec.data.online and spec.data.online.transform),
    ):
        if function:
            check_function(key, function, folder)
    check_arguments(spec.model.factory, folder, spec.model.args, spec.model.files, DATA_FACTS)
    if spec.training.best.metric != "loss" and not spec.model.metrics:
        raise InputError(
            "training.best.metric", repr(spec.training.best.metric), "loss", "Set model.metrics to use other metrics."
        )
    if spec.sample and spec.data.kind != "tokens":
        raise InputError(
            "sample", f"set, for data of kind {spec.data.kind}", "null", "Only language models generate text."
        )
    if spec.explain and not spec.model.outcomes and (spec.data.kind != "tokens" or spec.model.loss):
        raise InputError("explain", "true, without model.outcomes", "true with model.outcomes, or false")
    storage = spec.data.storage
    files = {
        name: check_source(source, f"model.files.{name}", folder, "any", storage)
        for name, source in spec.model.files.items()
    }
    checkpoint = spec.checkpoint
    if checkpoint.location:
        location = check_location("checkpoint.location", checkpoint.location, checkpoint.storage, folder)
        checkpoint = checkpoint.model_copy(update={"location": location})
    model = spec.model.model_copy(update={"files": files})
    return spec.model_copy(update={"data": check_data(spec.data, folder), "model": model, "checkpoint": checkpoint})
