"""A job tried on this machine, in a process that starts neither Ray nor a run."""

from __future__ import annotations

from drivetrain_pipelines.errors import InputError
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.model_processes import requests
from drivetrain_workers.model_processes.requests import Trial, TryRequest

from drivetrain.home import Home
from drivetrain.job.loading import Job
from drivetrain.job.snapshots import temporary_snapshot

_TIMEOUT_S = 600.0  # a model with billions of parameters takes minutes on CPUs


def try_job(job: Job, home: Home) -> Trial:
    """Try a job with a copy of its code, as a run does.

    Raises:
        InputError: something failed; with the key of the job that is to be changed.
    """
    left_out = {name: str(why) for name, why in job.code.left_out.items()}
    settings = job.spec.model_dump(mode="json")
    with temporary_snapshot(job.code, home) as code:
        downloads, gpus = str(home.downloads), job.spec.resources.gpus_per_worker
        try:
            return requests.try_job(TryRequest(settings, str(code), downloads, gpus, left_out, _TIMEOUT_S))
        except InputError as error:
            raise InputError(*(text.replace(str(code), str(job.folder)) for text in error.args)) from None
        except CheckpointError as error:
            given = str(error).replace(str(code), str(job.folder))
            raise InputError("JOB", given, "a job whose code can be tried") from None
