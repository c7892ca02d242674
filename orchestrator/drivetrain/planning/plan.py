"""The plan of a job: the settings that fit, the best of them, and estimates for the run. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_workers.engine.batching import solve, total_steps
from drivetrain_workers.model_processes.requests import ModelProfile
from drivetrain_workers.spec import OffloadSpec, TrainingSpec

from drivetrain.job.spec import JobSpec
from drivetrain.planning.hardware import Device
from drivetrain.planning.memory_estimate import Memory, Setting, host_memory, memory
from drivetrain.planning.pace import Pace, Speed, pace

_USABLE_FRACTION = 0.92  # of a GPU's memory; the rest is lost to the allocator
_TIME_TOLERANCE = 0.9  # a higher stage must be faster than this: the estimates are not exact


@dataclass(frozen=True)
class Site:
    """The hardware of a job and its measured speeds.

    Attributes:
        workers: total over ``nodes``.
        read_bytes_s: speed of reading the dataset on this machine, per worker; None without a dataset.
        link: bandwidth between two workers, in bytes per second.
        write_bytes_s: speed of writing and syncing checkpoints.
    """

    device: Device
    workers: int
    nodes: int
    speed: Speed
    read_bytes_s: float | None
    write_bytes_s: float
    link: float


@dataclass(frozen=True)
class Choice:
    """One setting and its estimates."""

    setting: Setting
    memory: Memory
    host_bytes: float
    pace: Pace
    fits: bool

    @property
    def name(self) -> str:
        """Name for display."""
        setting = self.setting
        offloaded = " offload all" if setting.offload_parameters else " offload" if setting.offload_optimizer else ""
        return f"{setting.zero_stage}{offloaded}"


@dataclass(frozen=True)
class Plan:
    """Estimates for a run of a job with the recommended setting.

    Attributes:
        choices: all possible settings of the job.
        left_out: why there is no choice with a ZeRO stage, by stage.
        best: the recommended setting, to which all estimates refer.
        as_written: the best setting that the job allows; None if none fits.
        steps: None if only a dataset could say.
        samples_per_s, tokens_per_s: of all workers; no tokens for other data.
        evaluating_s: total over all evaluations; None without a dataset.
        needed_bytes_s: data rate of one worker.
        hours: duration of the run, with an uncertainty factor of `Speed.error`; None without ``steps``.
        dollars: None without ``resources.price_per_hour``.
        assumed: about the data, without a dataset.
    """

    profile: ModelProfile
    site: Site
    choices: list[Choice]
    left_out: dict[int, str]
    best: Choice
    as_written: Choice | None
    steps: int | None
    samples_per_s: float
    tokens_per_s: float | None
    evaluating_s: float | None
    needed_bytes_s: float
    checkpoint_bytes: float
    checkpoint_s: float
    hours: float | None
    energy_kwh: float | None
    dollars: float | None
    assumed: tuple[str, ...] = ()

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization of the best setting."""
        peak = self.site.device.peak(self.best.setting.precision)
        return self.best.pace.flops / self.best.pace.total / peak / self.site.workers


@dataclass(frozen=True)
class Rows:
    """Numbers of samples of a dataset."""

    train: int
    eval: int


def make_plan(spec: JobSpec, profile: ModelProfile, site: Site, rows: Rows | None) -> Plan:
    """Plan a job; without a dataset, its duration may be unknown.

    Raises:
        InputError: no setting fits.
    """
    training = spec.training
    choices = [_evaluate(setting, spec, profile, site) for setting in _settings(spec, site)]
    best = _best(choices, site)
    written = [choice for choice in choices if choice.fits and _is_written(choice.setting, training, site)]
    batch, steps, evaluating_s, hours = training.global_batch_size, training.steps, None, None
    if rows:
        steps = total_steps(steps, training.epochs, rows.train, batch)
        evaluations = -(-steps // training.eval_every)
        forward = evaluations * rows.eval * profile.forward_flops_per_row
        evaluating_s = forward / site.speed.rate / site.workers
    if steps:
        hours = (steps * best.pace.total + (evaluating_s or 0.0)) / 3600
    samples_per_s = batch / best.pace.total
    kilowatts = site.workers * site.device.watts / 1000
    price = spec.resources.price_per_hour
    checkpoint_bytes = float(profile.trained * best.setting.state_bytes)
    return Plan(
        profile=profile,
        site=site,
        choices=choices,
        left_out=_left_out(training),
        best=best,
        as_written=_best(written, site) if written else None,
        steps=steps,
        samples_per_s=samples_per_s,
        tokens_per_s=samples_per_s * spec.data.sequence_length if spec.data.kind == "tokens" else None,
        evaluating_s=evaluating_s,
        needed_bytes_s=profile.row_bytes * samples_per_s / site.workers,
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_s=checkpoint_bytes / site.write_bytes_s,
        hours=hours,
        energy_kwh=None if hours is None else hours * kilowatts,
        dollars=None if price is None or hours is None else hours * site.workers * price,
    )


def _settings(spec: JobSpec, site: Site) -> Iterator[Setting]:
    """Yield all possible settings; the micro-batch of an elastic job also suits its maximum number of workers."""
    training, workers = spec.training, max(site.workers, spec.resources.max_workers)
    micro = solve(training.global_batch_size, training.micro_batch_size, workers).micro_batch
    for zero in sorted({0, 1, 2, 3} - _left_out(training).keys()):
        plain = _setting(training, zero, site.workers, micro)
        yield plain
        if site.device.is_gpu and zero >= 2:
            yield replace(plain, offload_optimizer=True)
        if site.device.is_gpu and zero == 3:
            yield replace(plain, offload_optimizer=True, offload_parameters=True)


def setting_of(spec: JobSpec) -> Setting:
    """Return the setting of a run, whose job has no open settings."""
    training, workers = spec.training, spec.resources.max_workers
    micro = solve(training.global_batch_size, training.micro_batch_size, workers).micro_batch
    return _setting(training, training.stage, workers, micro)


def _setting(training: TrainingSpec, zero: int, workers: int, micro_batch: int) -> Setting:
    return Setting(
        zero,
        workers,
        micro_batch,
        training.precision,
        training.optimizer.type,
        accumulation=solve(training.global_batch_size, micro_batch, workers).accumulation,
        recomputed=training.activation_checkpointing,
    )


def _left_out(training: TrainingSpec) -> dict[int, str]:
    """Return why the job cannot use a ZeRO stage, by stage."""
    reasons = {}
    if training.precision == "bf16":
        reasons[0] = "training.precision is bf16, for which DeepSpeed keeps fp32 weights in stages 1 to 3 only"
    if training.compile:
        reasons[3] = "training.compile does not support it"
    return reasons


def _evaluate(setting: Setting, spec: JobSpec, profile: ModelProfile, site: Site) -> Choice:
    """Estimate memory and time of a setting, with the largest micro-batch that fits if the job leaves it open."""
    is_open, batch = spec.training.micro_batch_size == "auto", spec.training.global_batch_size
    while True:
        needed = memory(profile, setting, site.device)
        fits = needed.total <= site.device.memory_bytes * _USABLE_FRACTION
        if fits or not is_open or setting.micro_batch == 1:
            break
        micro = setting.micro_batch // 2
        accumulation = solve(batch, micro, setting.workers).accumulation
        setting = replace(setting, micro_batch=micro, accumulation=accumulation)
    takes = pace(profile, setting, site.device, batch, site.link, site.speed)
    return Choice(setting, needed, host_memory(profile, setting) if site.device.is_gpu else 0.0, takes, fits)


def _best(choices: list[Choice], site: Site) -> Choice:
    """Return the fastest choice that fits; among about equally fast ones the first, which is the simplest."""
    fitting = [choice for choice in choices if choice.fits]
    if not fitting:
        least = min(choices, key=lambda choice: choice.memory.total)
        raise InputError(
            "training",
            f"a model that needs at least {least.memory.total / 1e9:.3g} GB per worker (zero {least.name})",
            f"{site.device.memory_bytes * _USABLE_FRACTION / 1e9:.3g} GB",
            "Use more workers, a smaller training.micro_batch_size, or training.activation_checkpointing.",
        )
    fastest = min(choice.pace.total for choice in fitting)
    return next(choice for choice in fitting if choice.pace.total * _TIME_TOLERANCE <= fastest)


def _is_written(setting: Setting, training: TrainingSpec, site: Site) -> bool:
    """Check whether the job allows a setting. On CPUs there is no offloading."""
    offload = training.offload if site.device.is_gpu else OffloadSpec()
    wanted = offload.optimizer != "none", offload.parameters != "none"
    stage = setting.zero_stage if training.zero_stage == "auto" else training.zero_stage
    return setting.zero_stage == stage and (setting.offload_optimizer, setting.offload_parameters) == wanted


def chosen_settings(plan: Plan) -> JsonObject:
    """Return the settings for a job that leaves them to the plan, and their predicted memory and time.

    Raises:
        InputError: no setting that the job allows fits.
    """
    if not plan.as_written:
        given = (
            f"settings that do not fit; the plan recommends zero {plan.best.name}, {plan.best.setting.micro_batch} rows"
        )
        raise InputError("training", given, "settings that fit according to `drivetrain plan`")
    choice = plan.as_written
    return {
        "zero_stage": choice.setting.zero_stage,
        "micro_batch_size": choice.setting.micro_batch,
        "peak_bytes": choice.memory.total,
        "step_s": choice.pace.total,
    }
