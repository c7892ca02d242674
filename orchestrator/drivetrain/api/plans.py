"""The plan of a job, without a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import psutil
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.prepare.prepare import find

from drivetrain.home import Home
from drivetrain.job.files import with_files
from drivetrain.job.loading import load_job
from drivetrain.job.snapshots import temporary_snapshot
from drivetrain.planning.forecast import forecast
from drivetrain.planning.hardware import DEFAULT_NETWORK_GBPS, Hardware, gpu
from drivetrain.planning.plan import Plan


def plan_job(
    path: str,
    overrides: Iterable[str],
    gpu_name: str | None,
    gpus: int | None,
    nodes: int,
    network_gbps: float | None,
    has_data: bool,
    on_progress: Callable[[int, int, str], None],
) -> Plan:
    """Plan a job. Its dataset is prepared first if necessary, which needs Ray; nothing else does.

    Args:
        gpu_name: see `drivetrain.planning.hardware.gpu`; None plans for CPUs of this machine.
        gpus: of each node; None spreads the job's workers over the nodes.
        network_gbps: of each node; None assumes `drivetrain.planning.hardware.DEFAULT_NETWORK_GBPS`.
        has_data: False plans without a dataset: what only the data can say is assumed or unknown.
        on_progress: of the preparation, see `drivetrain_pipelines.prepare.prepare.prepare`.

    Raises:
        InputError: nothing fits, or the job is not valid.
        PrepareError: there is no data.
        CheckpointError: the model cannot be profiled.
    """
    overrides = list(overrides)
    device = gpu(gpu_name, "--gpu") if gpu_name else None
    if gpus is not None:
        if not device:
            raise InputError("--gpus", str(gpus), "a number of GPUs together with their kind", "Add --gpu h100.")
        overrides.append(f"resources.workers={gpus * nodes}")
    job, home = load_job(path, overrides), Home.from_environment()
    spec = with_files(job.spec, home)
    workers = spec.resources.max_workers
    if workers % nodes:
        raise InputError("--nodes", str(nodes), f"a number that divides the {workers} workers of the job")
    memory = psutil.virtual_memory().total * nodes / workers
    hardware = Hardware(workers, nodes, device, memory, network_gbps or DEFAULT_NETWORK_GBPS)
    data, location = spec.data, None
    with temporary_snapshot(job.code, home) as code:
        if has_data:
            prepared = find(data, data.location or str(home.datasets), home.downloads, code)
            if not prepared:
                from drivetrain.api.datasets import prepare_data  # here: only a preparation needs Ray

                prepared = prepare_data(path, overrides, None, on_progress)
            location = prepared.folder.location
        return forecast(spec, code, location, hardware, home)
