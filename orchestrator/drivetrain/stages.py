"""What a run does before and after training: prepare the data, complete the records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from drivetrain_pipelines.prepare import prepare
from drivetrain_workers.checkpoints.store import committed
from drivetrain_workers.generate_request import GenerateRequest
from drivetrain_workers.run_folder import RunFolder

from drivetrain.cluster.gang import Agent
from drivetrain.home import Home
from drivetrain.run_view import RunView
from drivetrain.spec import JobSpec
from drivetrain.tracking.curves import draw_loss
from drivetrain.tracking.tracker import Tracker


class Stages:
    """The stages of one run.

    Args:
        spec: the resolved job.
        home: where datasets and downloads are.
        folder: of the run.
        tracker: of the run.
    """

    def __init__(self, spec: JobSpec, home: Home, folder: RunFolder, tracker: Tracker) -> None:
        self._spec, self._home, self._tracker = spec, home, tracker
        self.folder = folder

    def prepare(self, on_progress: Callable[[int, int, str], None]) -> tuple[str, dict[str, Any]]:
        """Make or find the dataset; returns its folder and what is known of it.

        Raises:
            PrepareError: as `drivetrain_pipelines.prepare.prepare`.
        """
        data = self._spec.data
        folder, manifest, made = prepare(
            data,
            self._home.datasets,
            self._home.downloads,
            self.folder.code,
            self._spec.resources.preprocessors,
            on_progress,
        )
        self._tracker.dataset(data.name, manifest.version, folder)
        self._tracker.tags(dataset_version=manifest.version)
        facts = {
            "dataset": str(folder),
            "dataset_version": manifest.version,
            "dataset_made": made,
            "train_samples": manifest.rows("train"),
            "eval_samples": manifest.rows("eval"),
            "unigram_entropy": manifest.statistics["unigram_entropy"],
        }
        return str(folder), facts

    def conclude(self, agents: list[Agent], dataset: str, view: RunView) -> dict[str, Any]:
        """Generate the sample, draw the curves, log both; returns the facts of the summary.

        Raises:
            RayTaskError: the model could not generate.
        """
        picture = self.folder.path / "loss.png"
        entropy = view.facts["unigram_entropy"]
        draw_loss(self._tracker.records(), entropy, self._spec.name, picture)
        self._tracker.artifact(picture)
        checkpoint = committed(self.folder.checkpoints)[0].folder(self.folder.checkpoints)
        facts = {
            "checkpoint": str(checkpoint),
            "train_loss": view.loss,
            "eval_loss": view.eval_loss,
            "tokens_per_s": view.mean_tokens_per_s(),
            "picture": str(picture),
        }
        if sample := self._spec.sample:
            request = GenerateRequest(str(self.folder.path), dataset, sample.prompt, sample.max_tokens)
            facts["sample"] = ray.get(agents[0].handle.generate.remote(request))
            text = self.folder.path / "sample.txt"
            text.write_text(str(facts["sample"]))
            self._tracker.artifact(text)
        return facts
