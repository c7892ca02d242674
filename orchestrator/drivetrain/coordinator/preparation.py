"""Before training: prepare the dataset, and let the plan choose the open settings of the job."""

from __future__ import annotations

import logging
from collections.abc import Callable

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.prepare.prepare import prepare
from drivetrain_pipelines.storage.json_files import JsonObject, atomic_write
from drivetrain_workers.records.run_folder import RunFolder

from drivetrain.cluster.devices import hardware_for
from drivetrain.home import Home
from drivetrain.job.files import with_files
from drivetrain.job.spec import JobSpec
from drivetrain.planning.forecast import forecast
from drivetrain.planning.plan import chosen_settings
from drivetrain.runs.facts import RunFacts
from drivetrain.tracking.tracker import Tracker

_log = logging.getLogger(__name__)


class Preparation:
    """The preparation of one run.

    Args:
        spec: the resolved job.
        home: holds datasets and downloads.
        folder: of the run.
        tracker: of the run.
        gpus_per_worker: as fixed at the start of the run.
    """

    def __init__(self, spec: JobSpec, home: Home, folder: RunFolder, tracker: Tracker, gpus_per_worker: int) -> None:
        self._spec, self._home, self._tracker = spec, home, tracker
        self._gpus_per_worker = gpus_per_worker
        self.folder = folder

    def prepare(self, on_progress: Callable[[int, int, str], None]) -> RunFacts:
        """Prepare the dataset, or find an existing one; return its facts.

        Raises:
            PrepareError: see `drivetrain_pipelines.prepare.prepare`.
        """
        resolved = with_files(self._spec, self._home)
        if resolved != self._spec:
            self._resolve(resolved)
        data = self._spec.data
        prepared = prepare(
            data,
            data.location or str(self._home.datasets),
            self._home.downloads,
            self.folder.code,
            self._spec.resources.preprocessors,
            on_progress,
        )
        columns = set(prepared.manifest.schema.names)
        if self._spec.standard_baseline and not {"label", "tokens"} & columns:
            raise InputError("baseline", "true, for data without labels", "baseline: {function: module:function}")
        manifest, location = prepared.manifest, prepared.folder.location
        self._tracker.dataset(data.name, manifest.version, location)
        self._tracker.tags(dataset_version=manifest.version, skipped_records=int(manifest.statistics["skipped"]))
        return RunFacts(
            dataset=location,
            dataset_version=manifest.version,
            dataset_made=prepared.made,
            train_samples=manifest.rows("train"),
            eval_samples=manifest.rows("eval"),
            counted_in="tokens" if "tokens" in columns else "samples",
            unigram_entropy=None if "label" in columns else manifest.statistics.get("unigram_entropy"),
            skipped_records=int(manifest.statistics["skipped"]),
            skipped_first=tuple(manifest.skipped),
            data_notes=prepared.notes,
            plan=self._choose(location) if self._spec.training.open_settings else None,
        )

    def _choose(self, location: str) -> JsonObject:
        """Let the plan choose the open settings, and store them in the resolved job."""
        workers = self._spec.resources.min_workers  # more workers need less memory each
        hardware = hardware_for(workers, self._spec.resources.cpus_per_worker, self._gpus_per_worker)
        found = chosen_settings(forecast(self._spec, self.folder.code, location, hardware, self._home))
        settings = {name: found[name] for name in ("zero_stage", "micro_batch_size")}
        training = self._spec.training.model_copy(update=settings)
        self._resolve(self._spec.model_copy(update={"training": training}))
        self._tracker.params({f"plan.{name}": value for name, value in found.items()})
        self._tracker.artifact(self.folder.job_resolved)
        return found

    def _resolve(self, spec: JobSpec) -> None:
        """Store a job with more resolved settings."""
        self._spec = spec
        with atomic_write(self.folder.job_resolved) as sink:
            sink.write(spec.model_dump_json(indent=2).encode())
