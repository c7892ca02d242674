"""`drivetrain schema`."""

from __future__ import annotations

import json
from pathlib import Path

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import JsonObject

from drivetrain.cli.errors import errors
from drivetrain.job.spec import JobSpec

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def job_schema() -> JsonObject:
    """Return the JSON Schema of the job file."""
    schema = JobSpec.model_json_schema()
    keep = schema["$defs"]["CheckpointSpec"]["properties"]["keep"]
    keep["anyOf"] = [{"type": "integer", "minimum": 1}, {"$ref": keep.pop("$ref")}]  # its validator accepts a number
    return {**schema, "$schema": _DIALECT, "title": "Drivetrain job file"}


def print_schema(target: str | None) -> None:
    """Print the schema, or write it into a file."""
    with errors():
        text = json.dumps(job_schema(), indent=2)
        if target is None:
            print(text)
            return
        try:
            Path(target).write_text(f"{text}\n", "utf-8")
        except OSError as error:
            raise InputError("--to", repr(target), "a file that can be written", str(error)) from error
        print(f"# yaml-language-server: $schema={target}")
