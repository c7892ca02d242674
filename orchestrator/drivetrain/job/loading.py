"""Loading and validation of a job file, before anything starts."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.raw.checks import check_data, check_location
from drivetrain_pipelines.raw.listing import check_source
from drivetrain_pipelines.spec import Spec
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.storage.yaml_files import parse_yaml, read_text
from drivetrain_workers.engine.batching import solve
from drivetrain_workers.engine.deepspeed_config import check_passthrough
from drivetrain_workers.model_processes.requests import Trial
from drivetrain_workers.spec import DATA_FACTS
from pydantic import ValidationError

from drivetrain.job.code_checks import CodeChecks
from drivetrain.job.code_files import Code, read_code
from drivetrain.job.modules import Modules
from drivetrain.job.spec import JobSpec
from drivetrain.job.validation_errors import first_error, models_in

_DATA = (  # keys whose values are paths of data, or sections and lists with such paths
    ("data", "source"),
    ("data", "eval_source"),
    ("data", "files"),
    ("data", "tokenizer", "file"),
    ("model", "files"),
)
_OUTPUTS = (("data", "location"), ("checkpoint", "location"), ("training", "offload", "nvme_path"))
RECIPES = "drivetrain_workers.recipes"


@dataclass(frozen=True)
class Job:
    """A checked job.

    Attributes:
        written: the text of the job file.
        spec: the resolved job: defaults filled in, overrides applied, paths absolute.
        code: the user's code; every run stores a copy of it.
        trial: the results of trying it, if that was asked for.
    """

    written: str
    spec: JobSpec
    code: Code
    trial: Trial | None = None

    @property
    def folder(self) -> Path:
        """The job file's folder."""
        return self.code.folder

    @property
    def code_version(self) -> str:
        """Digest of the code."""
        return self.code.version

    @property
    def fingerprint(self) -> str:
        """Identity of the job: digest of the resolved spec and the code."""
        return hashlib.sha256(f"{self.spec.model_dump_json()}{self.code_version}".encode()).hexdigest()[:16]


def load_job(path: str, overrides: Iterable[str] = (), unpacked: bool = False) -> Job:
    """Load a job file or a recipe by name, apply ``--set`` overrides and validate the job.

    Args:
        unpacked: whether the folder is an unpacked package, which holds nothing but the job.

    Raises:
        InputError: with the key or file, the value, and the allowed values.
    """
    file = find_job_file(path)
    written, document = read_document(file, overrides)
    spec = _validate(document)
    _warn_of_renamed_keys(document)
    code = read_code(file.parent, [*names_of_data(document), *names_of_outputs(document)], in_project=not unpacked)
    return Job(written, _check(spec, code), code)


def read_document(file: Path, overrides: Iterable[str] = ()) -> tuple[str, JsonObject]:
    """Return the text of a job file, and its content with overrides applied.

    Raises:
        InputError: it is not YAML with the sections of a job.
    """
    written = read_text(file, "a YAML job file")
    document = parse_yaml(written, str(file), "a YAML job file")
    if not isinstance(document, dict):
        raise InputError(str(file), type(document).__name__, "a mapping with the sections of a job")
    for override in overrides:
        _override(document, override)
    return written, document


def names_of_data(document: JsonObject) -> list[str]:
    """Return the local paths and globs of the data that a job names. Its sections need not be valid."""
    return _local_paths(document, _DATA)


def names_of_outputs(document: JsonObject) -> list[str]:
    """Return the local folders that a job's runs write to."""
    return _local_paths(document, _OUTPUTS)


def _local_paths(document: JsonObject, keys: Iterable[tuple[str, ...]]) -> list[str]:
    found: list[Any] = []
    for path in keys:
        value: Any = document
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        found += value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    named = (each.get("source") if isinstance(each, dict) else each for each in found)
    paths = (each.removeprefix("file://") for each in named if isinstance(each, str))
    return [path for path in paths if path and "://" not in path]


def check_code_to_send(document: JsonObject, code: Code) -> None:
    """Check the code of a job that will run elsewhere, where other modules may be installed.

    A document that is not valid is left to the server: it may be of another version.

    Raises:
        InputError: a function does not exist, or its module needs a file that is not part of the code.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            spec = JobSpec.model_validate(document)
    except ValidationError:
        return
    _check_functions(spec, CodeChecks(Modules(code, runs_elsewhere=True)))


def find_job_file(path: str) -> Path:
    """Find the job file for a path: a file, a folder with ``job.yaml``, or the name of a recipe."""
    given = Path(path).expanduser()
    candidates = [given, given / "job.yaml", recipes_folder() / path.replace("-", "_") / "job.yaml"]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate.resolve()
    recipes = sorted(p.parent.name.replace("_", "-") for p in recipes_folder().glob("*/job.yaml"))
    close = difflib.get_close_matches(path, recipes, n=1)
    fix = f"Did you mean {close[0]}?" if close else "" if os.path.exists(given) else "The file does not exist."
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


def _check(spec: JobSpec, code: Code) -> JobSpec:
    """Check everything that needs several sections or the file system; return the spec with absolute paths."""
    folder = code.folder
    for workers in range(spec.resources.min_workers, spec.resources.max_workers + 1):
        solve(spec.training.global_batch_size, spec.training.micro_batch_size, workers)
    check_passthrough(spec.training)
    _check_functions(spec, CodeChecks(Modules(code)))
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


def _check_functions(spec: JobSpec, checks: CodeChecks) -> None:
    """Check that all functions of a job exist, and that they can be called as they will be."""
    model, data, baseline = spec.model, spec.data, spec.baseline
    of_baseline = None if isinstance(baseline, bool) else baseline.function
    context = ("context",)
    for key, function, given, optional in (
        ("model.factory", model.factory, None, ()),
        ("model.loss", model.loss, ("model", "batch"), context),
        ("model.weight", model.weight, ("batch",), context),
        ("model.metrics", model.metrics, ("model", "batch"), context),
        ("model.predict", model.predict, ("model", "batch"), context),
        ("model.outcomes", model.outcomes, ("model", "batch"), context),
        ("model.assess", model.assess, ("model", "splits"), ()),
        ("baseline.function", of_baseline, ("splits",), ()),
        ("data.reader", data.reader, ("path",), (*data.files,)),
        ("data.transform", data.transform, ("record",), (*data.files,)),
        ("data.online.transform", data.online and data.online.transform, ("sample", "random"), ()),
    ):
        if function:
            checks.check_function(key, function)
            if given:
                checks.check_call(key, function, given, optional)
    checks.check_factory(model.factory, model.args, model.files, DATA_FACTS)
