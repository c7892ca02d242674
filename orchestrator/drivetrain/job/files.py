"""Files named in a job other than data, such as pre-trained weights, stored by digest so that they cannot change."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from drivetrain_pipelines.raw.sources import fetch
from drivetrain_pipelines.storage.checksums import tree_digest

from drivetrain.home import Home
from drivetrain.job.spec import JobSpec


def with_files(spec: JobSpec, home: Home) -> JobSpec:
    """Store the tokenizer, ``data.files`` and ``model.files`` in the home; return the job with the new paths.

    Files that are already stored are not copied.

    Raises:
        PrepareError: a file cannot be fetched.
    """

    def keep(source: str, key: str) -> str:
        found = fetch(source, key, spec.data.storage, home.downloads)
        return str(found if found.is_relative_to(home.files) else _store(found, home.files))

    data, model, tokenizer = spec.data, spec.model, spec.data.tokenizer
    if tokenizer.file:
        tokenizer = tokenizer.model_copy(update={"file": keep(tokenizer.file, "data.tokenizer.file")})
    of_data = {name: keep(source, f"data.files.{name}") for name, source in data.files.items()}
    of_model = {name: keep(source, f"model.files.{name}") for name, source in model.files.items()}
    data = data.model_copy(update={"tokenizer": tokenizer, "files": of_data})
    return spec.model_copy(update={"data": data, "model": model.model_copy(update={"files": of_model})})


def _store(source: Path, root: Path) -> Path:
    """Copy a file or folder into the store, by digest; return the copy."""
    target = root / tree_digest(source) / source.name
    if target.exists():
        return target
    root.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".copy-") as folder:
        inside = Path(folder) / target.parent.name
        inside.mkdir()
        if source.is_dir():
            shutil.copytree(source, inside / source.name)
        else:
            shutil.copyfile(source, inside / source.name)
        with suppress(OSError):  # another process stored the same files first
            inside.rename(target.parent)
    return target
