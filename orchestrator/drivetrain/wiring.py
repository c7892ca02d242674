"""Puts the parts together. The only place that knows all of them."""

from __future__ import annotations

import getpass
import logging
import os

from drivetrain_workers.process import yield_to_training

from drivetrain.cluster.gang import Gang
from drivetrain.coordinator import Coordinator
from drivetrain.home import Home
from drivetrain.run_loop import RunLoop
from drivetrain.runs.store import RunStore
from drivetrain.spec import JobSpec
from drivetrain.stages import Stages
from drivetrain.tracking.spool import Spool
from drivetrain.tracking.tracker import Destination, Tracker


class RayCoordinator(Coordinator):
    """The coordinator as Ray builds it, from arguments that survive a restart.

    Args:
        home: of the cluster's head.
        session: see `Coordinator`.
    """

    def __init__(self, home: Home, session: str) -> None:
        yield_to_training()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
        store = RunStore(home.database_url)

        def spec_of(run_id: str) -> JobSpec:
            return JobSpec.model_validate_json(home.run(run_id).job_resolved.read_text())

        def gang_of(run_id: str) -> Gang:
            return Gang(run_id, spec_of(run_id).resources, home.run(run_id))

        def build(run_id: str) -> RunLoop:
            spec, folder = spec_of(run_id), home.run(run_id)
            uri = store.get(run_id).facts["mlflow_uri"]
            tracker = Tracker(Spool(folder.spool), lambda: _connect(home, spec, run_id, uri))
            if not any(record["op"] == "begin" for record in tracker.records()):
                _describe(tracker, spec, home, run_id)
            return RunLoop(run_id, store, gang_of(run_id), Stages(spec, home, folder, tracker), tracker)

        super().__init__(store, session, build, lambda run_id: _check(gang_of(run_id)), lambda r: home.run(r).path)


def _check(gang: Gang) -> None:
    gang.shape()


def _connect(home: Home, spec: JobSpec, run_id: str, uri: str) -> Destination:
    from drivetrain.tracking.mlflow_client import MlflowRun  # here: importing mlflow takes seconds, in a thread

    embedded = home.mlflow_artifacts if uri.startswith("sqlite:") else None
    return MlflowRun(uri, spec.tracking.experiment or spec.name, embedded, run_id)


def _describe(tracker: Tracker, spec: JobSpec, home: Home, run_id: str) -> None:
    """What a run logs of itself before it begins."""
    folder = home.run(run_id)
    tracker.params(flatten(spec.model_dump(mode="json")))
    code = (folder.path / "code_version").read_text()
    tracker.tags(user=_user(), code_version=code, seed=spec.seed, home=os.fspath(home.path))
    tracker.artifact(folder.job_written)
    tracker.artifact(folder.job_resolved)
    for path in sorted(folder.code.rglob("*.py")):
        tracker.artifact(path, f"code/{path.parent.relative_to(folder.code)}".removesuffix("/."))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())


def flatten(section: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested sections to dotted keys, as MLflow shows them."""
    flat: dict[str, object] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
