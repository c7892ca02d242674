"""How a model improves with data: one run for each share of the data, and the power law of their losses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from drivetrain_pipelines.errors import DrivetrainError, InputError
from drivetrain_pipelines.prepare.prepare import find
from drivetrain_workers.protocol.reasons import Reason
from drivetrain_workers.spec import TrainingSpec
from matplotlib.figure import Figure

from drivetrain.api import runs
from drivetrain.api.runs import OnView
from drivetrain.home import Home
from drivetrain.job.files import with_files
from drivetrain.job.loading import Job, load_job
from drivetrain.job.snapshots import temporary_snapshot
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.tracking.spool import read_records


@dataclass(frozen=True)
class Point:
    """A run on a share of the data.

    Attributes:
        samples: that it trained on.
        loss: the lowest on the eval split, which is the same for all.
    """

    fraction: float
    samples: int
    loss: float
    run_id: str


@dataclass(frozen=True)
class PowerLaw:
    """``loss = scale * samples ** -exponent`` (Hestness et al. 2017).

    Attributes:
        r_squared: share of the variance of log losses that it explains.
    """

    scale: float
    exponent: float
    r_squared: float

    @classmethod
    def fit(cls, points: Iterable[Point]) -> PowerLaw:
        """Fit a law by least squares of logarithms."""
        samples, losses = np.log([[point.samples, point.loss] for point in points]).T
        slope, intercept = np.polyfit(samples, losses, 1)
        rest, all_of_it = losses - (slope * samples + intercept), losses - losses.mean()
        explained = 1.0 if not all_of_it.any() else 1 - float(rest @ rest) / float(all_of_it @ all_of_it)
        return cls(float(np.exp(intercept)), float(-slope), explained)

    def __str__(self) -> str:
        return f"loss = {self.scale:.4g} * samples^{-self.exponent:.4f}"

    def loss(self, samples: float) -> float:
        """Return the predicted loss."""
        return float(self.scale * samples**-self.exponent)


def measure(
    job: str,
    overrides: Iterable[str],
    fractions: Iterable[float],
    address: str | None,
    on_view: OnView,
) -> list[Point]:
    """Train a job on shares of its data, one after another. Runs that are complete already are not repeated.

    Raises:
        InputError: the job is not valid, fewer than two shares are given, or the runs would not read all of the data.
        DrivetrainError: a run has failed.
    """
    shares = sorted(set(fractions))
    if len(shares) < 2 or not all(0 < share <= 1 for share in shares):
        raise InputError("--fractions", ",".join(map(str, shares)), "two or more shares in (0, 1]")
    overrides, points = list(overrides), list[Point]()
    for share in shares:
        points.append(_point(job, [*overrides, f"data.train_fraction={share}"], share, address, on_view))
        check_reading(load_job(job, overrides).spec.training, round(points[0].samples * shares[-1] / shares[0]))
    return points


def check_reading(training: TrainingSpec, samples: int) -> None:
    """Check that runs with a fixed number of steps read all samples of the largest share.

    Otherwise the runs with more data do not read it, and the curve says nothing about data.

    Raises:
        InputError: they do not.
    """
    if training.steps and training.steps * training.global_batch_size < samples:
        read = training.steps * training.global_batch_size
        given = f"{training.steps} for every share, which read {read:,} of the {samples:,} samples of the largest"
        fix = "Read each share once: --set training.steps=null --set training.epochs=1.0"
        raise InputError("training.steps", given, f"at least {-(-samples // training.global_batch_size)}", fix)


def draw(points: list[Point], law: PowerLaw, name: str, target: Path) -> None:
    """Plot losses over samples on logarithmic scales, with the prediction for twice the data."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    measured, twice = [point.samples for point in points], 2 * points[-1].samples
    along = np.geomspace(measured[0], twice, 50)
    axes.plot(along, [law.loss(samples) for samples in along], color="#90a4ae", linestyle="--", linewidth=1.2)
    axes.plot(measured, [point.loss for point in points], "o", color="#1565c0", label="measured")
    axes.plot([twice], [law.loss(twice)], "o", color="#1565c0", fillstyle="none", label="predicted")
    axes.set(xscale="log", yscale="log", xlabel="training samples", ylabel="eval loss")
    axes.set_xticks([*measured, twice], [f"{samples:,}" for samples in [*measured, twice]])
    axes.xaxis.minorticks_off()
    for place in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        place("{x:.3g}")
    axes.legend(frameon=False)
    axes.set_title(f"{name}: {law}  (R² {law.r_squared:.3f})", loc="left", fontsize=10)
    axes.grid(True, which="both", color="#eceff1")
    figure.savefig(target, dpi=110)


def _point(job: str, overrides: list[str], share: float, address: str | None, on_view: OnView) -> Point:
    home, checked = Home.from_environment(), load_job(job, overrides)
    done = _done_before(checked, home)
    if done:
        run_id, facts = done.id, done.facts
    else:
        summary = runs.run(job, overrides, address, on_view)
        run_id, facts = summary.run_id, summary.facts
        if not summary.succeeded:
            raise DrivetrainError(f"{run_id} ended as {summary.reason}: {facts.detail}")
    records = (record["values"] for record in read_records(home.run(run_id).spool) if record["op"] == "metrics")
    losses = [values["eval_loss"] for values in records if "eval_loss" in values]
    if min(losses) <= 0:
        raise InputError("JOB", f"{job}, whose eval loss is {min(losses):g}", "a job with a loss above 0")
    return Point(share, facts.train_samples or 0, min(losses), run_id)


def _done_before(job: Job, home: Home) -> RunRecord | None:
    """Return a complete run of the same job on the same data."""
    alike = RunStore(home.database_url).iterate(fingerprint=job.fingerprint)
    complete = (record for record in alike if record.facts.reason == Reason.COMPLETED)
    if (newest := next(complete, None)) is None:
        return None
    data = with_files(job.spec, home).data
    with temporary_snapshot(job.code, home) as code:
        found = find(data, data.location or str(home.datasets), home.downloads, code)
    version = found.manifest.version if found else None
    return next((record for record in chain([newest], complete) if record.facts.dataset_version == version), None)
