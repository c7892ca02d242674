"""Checks of the data section that need more than the types of its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.raw.sources import check_source
from drivetrain_pipelines.raw.tokenizer_config import with_special_tokens
from drivetrain_pipelines.spec import DataSpec, StorageSpec
from drivetrain_pipelines.storage.folder import open_storage
from drivetrain_pipelines.storage.paths import is_local, local_path


def check_data(spec: DataSpec, job_folder: Path) -> DataSpec:
    """Return the data section with absolute paths.

    Raises:
        InputError: an invalid source, tokenizer or location, or keys that contradict each other.
    """

    def checked(source: str, key: str) -> str:
        return check_source(source, key, job_folder, spec.file_format, spec.storage)

    if spec.image and spec.audio:
        raise InputError("data.audio", "set together with data.image", "one kind of samples")
    if spec.reader and spec.format != "auto":
        raise InputError("data.format", f"{spec.format}, with data.reader", "auto", "The reader knows the format.")
    if spec.image and spec.image.decode is False and spec.format == "audio":
        raise InputError("data.image", "set for the format audio", "data.audio")
    if not spec.mixture:
        raise InputError("data.source", "[]", "at least one source")
    data: dict[str, Any] = {}
    if isinstance(spec.source, str):
        data["source"] = checked(spec.source, "data.source")
    else:
        data["source"] = [
            part.model_copy(update={"source": checked(part.source, f"data.source.{number}.source")})
            for number, part in enumerate(spec.source)
        ]
    if spec.eval_source:
        data["eval_source"] = checked(spec.eval_source, "data.eval_source")
    data["files"] = {
        name: check_source(source, f"data.files.{name}", job_folder, "any", spec.storage)
        for name, source in spec.files.items()
    }
    if spec.tokenizer.file:
        file = check_source(spec.tokenizer.file, "data.tokenizer.file", job_folder, "any", spec.storage)
        data["tokenizer"] = with_special_tokens(spec.tokenizer.model_copy(update={"file": file}))
    if spec.location:
        data["location"] = check_location("data.location", spec.location, spec.storage, job_folder)
    return spec.model_copy(update=data)


def check_location(key: str, location: str, storage: StorageSpec, job_folder: Path) -> str:
    """Return the absolute path, or the URL, of a folder that a job names. Raises `InputError`."""
    if is_local(location):
        return str((job_folder / local_path(location).expanduser()).resolve())
    try:
        open_storage(location, storage)
    except (ValueError, ImportError) as error:
        raise InputError(key, repr(location), "a folder or a URL of fsspec", str(error)) from error
    return location.rstrip("/")
