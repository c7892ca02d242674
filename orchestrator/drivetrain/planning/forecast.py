"""The forecast for a job, from a profile of its model and from similar past runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile, TemporaryDirectory

import numpy as np
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.prepare.assumed import write_assumed
from drivetrain_pipelines.stream.columns import Ragged
from drivetrain_pipelines.stream.dataset import Dataset, open_dataset
from drivetrain_workers.model_processes.requests import ModelProfile, ProfileRequest, profile

from drivetrain.home import Home
from drivetrain.job.spec import JobSpec, stored_spec
from drivetrain.planning.hardware import Device, Hardware, cpu
from drivetrain.planning.pace import assumed_speed, communication_s, learned_speed, work
from drivetrain.planning.plan import Plan, Rows, Site, make_plan, setting_of
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.tracking.spool import read_records

_BASE_BYTES = 315e6  # of a rank without a model; measured values of past runs replace it
_SAMPLE_BYTES = 64 << 20
_SAMPLE_ROWS = 2048
_MAX_PAST_RUNS = 200  # enough for a median; each requires reading a file


def forecast(spec: JobSpec, code_folder: Path, location: str | None, hardware: Hardware, home: Home) -> Plan:
    """Plan a job.

    Args:
        spec: the resolved job.
        code_folder: the user's code.
        location: of the prepared dataset; None plans without one, with samples as the job describes them.
        hardware: of the workers.
        home: holds the past runs.

    Raises:
        InputError: no setting fits, or the job does not describe its samples.
        CheckpointError: the model cannot be profiled.
    """
    job = spec.model_dump(mode="json")
    if location is None:
        with TemporaryDirectory(prefix="drivetrain-plan-") as folder:
            assumed = write_assumed(spec.data, Path(folder))
            found = profile(ProfileRequest(job, str(code_folder), folder))
        return replace(make_plan(spec, found, _site(spec, found, hardware, home, None), None), assumed=assumed)
    found = profile(ProfileRequest(job, str(code_folder), location))
    dataset = open_dataset(location, spec.data)
    rows = Rows(dataset.manifest.rows("train"), dataset.manifest.rows("eval"))
    return make_plan(spec, found, _site(spec, found, hardware, home, dataset), rows)


def _site(spec: JobSpec, found: ModelProfile, hardware: Hardware, home: Home, dataset: Dataset | None) -> Site:
    past = list(_similar_runs(spec, hardware.gpu is not None, home))
    base = max((record.facts.base_bytes or 0 for record, _ in past), default=_BASE_BYTES)
    device = hardware.gpu or cpu(hardware.worker_bytes, base, found.matmul_flops, spec.resources.cpus_per_worker)
    speed = assumed_speed(found, device, spec.training.precision)
    link = hardware.link(device)
    if steps := [step for record, past_spec in past for step in _steps(record, past_spec, found, home, device)]:
        speed = learned_speed(speed, steps)
    read_speed = _read_speed(dataset) if dataset else None
    return Site(device, hardware.workers, hardware.nodes, speed, read_speed, _write_speed(home.path), link)


def _similar_runs(spec: JobSpec, on_gpus: bool, home: Home) -> Iterator[tuple[RunRecord, JobSpec]]:
    """Yield the newest ended runs of this home with the same model on the same kind of device."""
    for record in RunStore(home.database_url).page(_MAX_PAST_RUNS, ended=True):
        folder = home.run(record.id)
        if not folder.job_resolved.exists() or record.facts.base_bytes is None:
            continue
        past = stored_spec(folder)
        same = past.model == spec.model and past.training.precision == spec.training.precision
        same = same and past.data.sequence_length == spec.data.sequence_length
        if same and bool(record.facts.gpus_per_worker) == on_gpus and isinstance(past.resources.workers, int):
            yield record, past


def _steps(
    record: RunRecord, past: JobSpec, found: ModelProfile, home: Home, device: Device
) -> Iterator[tuple[float, float]]:
    """Yield the operations and seconds per step and worker of a past run, see `learned_speed`."""
    if seconds := record.facts.step_s or _median_step_s(home.run(record.id).spool):
        training, workers = past.training, past.resources.max_workers
        if not device.is_gpu:  # the rest of its communication is part of updating
            seconds = max(seconds / 2, seconds - communication_s(found, setting_of(past), device, device.link, 0.0))
        yield work(found, training.global_batch_size, training.activation_checkpointing) / workers, seconds


def _median_step_s(spool: Path) -> float:
    """Return the median step time of a run without a summary; 0 without a logged step."""
    logged = (entry for entry in read_records(spool) if "step_s" in entry.get("values", ()))
    seconds: list[float] = [entry["values"]["step_s"] for entry in logged]
    return median(seconds or [0.0])


def _read_speed(dataset: Dataset) -> float:
    """Measure the speed of reading some rows, in bytes per second."""
    rows = np.arange(min(_SAMPLE_ROWS, dataset.manifest.rows("train")))
    began = time.perf_counter()
    columns = dataset.read("train", rows)
    seconds = time.perf_counter() - began
    return sum(float(c.values.nbytes if isinstance(c, Ragged) else c.nbytes) for c in columns.values()) / seconds


def _write_speed(folder: Path) -> float:
    """Measure the speed of writing and syncing a file in the folder, in bytes per second."""
    content = os.urandom(1 << 20)
    with NamedTemporaryFile(dir=folder) as file, suppress(OSError):
        began = time.perf_counter()
        for _ in range(_SAMPLE_BYTES >> 20):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return _SAMPLE_BYTES / (time.perf_counter() - began)
    raise InputError("DRIVETRAIN_HOME", str(folder), f"a folder with {_SAMPLE_BYTES >> 20} MB of free space")
