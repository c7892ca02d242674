"""The experiment and the run in MLflow that belong to a run: found, created, or reported as deleted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_USER

from drivetrain.tracking.destination import DeletedError
from drivetrain.tracking.mlflow_errors import is_absent

RUN_TAG = "drivetrain.run"


@dataclass(frozen=True)
class Wanted:
    """The run that is wanted in MLflow.

    Attributes:
        experiment: created if it does not exist.
        artifacts: artifact root for a new experiment; None selects the server's default.
        name: of the run; also its identity.
        user: owner of the run.
        submitted: submission time, in seconds since the epoch.
        known_id: id of the run in MLflow that has received records; empty before the first.
        remake: whether a run that was deleted is restored, or created again.
    """

    experiment: str
    artifacts: Path | None
    name: str
    user: str
    submitted: float
    known_id: str = ""
    remake: bool = False


def find_or_create(client: MlflowClient, wanted: Wanted) -> Run:
    """Return the run in MLflow.

    Raises:
        DeletedError: it was deleted, or its experiment was.
    """
    experiment_id = _experiment(client, wanted)
    found = _known(client, wanted.known_id) or _tagged(client, experiment_id, wanted.name)
    if found is None and (wanted.remake or not wanted.known_id):
        tags = {RUN_TAG: wanted.name, MLFLOW_USER: wanted.user}
        return client.create_run(experiment_id, int(wanted.submitted * 1000), tags, wanted.name)
    if found and found.info.lifecycle_stage == LifecycleStage.DELETED and wanted.remake:
        client.restore_run(found.info.run_id)
    elif found is None or found.info.lifecycle_stage == LifecycleStage.DELETED:
        raise deleted(wanted.name)
    return found


def is_deleted(client: MlflowClient, run_id: str) -> bool:
    """Check whether MLflow answers that a run was deleted."""
    try:
        run = _known(client, run_id)
    except MlflowException:
        return False
    return run is None or run.info.lifecycle_stage == LifecycleStage.DELETED


def deleted(name: str) -> DeletedError:
    """Return the error about a run that was deleted in MLflow."""
    fix = f"it stays deleted; after the end of the run `drivetrain sync {name}` logs it again"
    return DeletedError(f"the run was deleted in MLflow and {fix}")


def _experiment(client: MlflowClient, wanted: Wanted) -> str:
    found: Experiment | None = client.get_experiment_by_name(wanted.experiment)
    if found is None:
        location = wanted.artifacts.as_uri() if wanted.artifacts else None
        return client.create_experiment(wanted.experiment, artifact_location=location)
    if found.lifecycle_stage == LifecycleStage.DELETED:
        fix = f"`mlflow experiments restore --experiment-id {found.experiment_id}` restores it"
        raise DeletedError(f"the experiment {wanted.experiment!r} was deleted in MLflow; {fix}")
    return found.experiment_id


def _known(client: MlflowClient, run_id: str) -> Run | None:
    """Return the run with this id; None if there is none."""
    try:
        return client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if is_absent(error):
            return None
        raise


def _tagged(client: MlflowClient, experiment_id: str, name: str) -> Run | None:
    """Return the run with this name, one that is not deleted if there is one."""
    filter_string = f"tags.`{RUN_TAG}` = '{name}'"
    found = client.search_runs([experiment_id], filter_string, run_view_type=ViewType.ALL)
    active = [run for run in found if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
    return next(iter([*active, *found]), None)
