"""`drivetrain plan`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from drivetrain.api.plans import plan_job
from drivetrain.cli.errors import errors
from drivetrain.cli.tables import show
from drivetrain.cli.words import plural
from drivetrain.planning.hardware import DEFAULT_NETWORK_GBPS
from drivetrain.planning.plan import Choice, Plan

_TERMS = {
    "weights": "weights",
    "gradients": "grads",
    "optimizer": "optim",
    "activations": "activ",
    "buffers": "buffers",
    "copy": "copy",
    "slack": "slack",
    "base": "base",
}


def plan(
    job: str,
    overrides: list[str],
    gpu: str | None,
    gpus: int | None,
    nodes: int,
    network_gbps: float | None,
    has_data: bool,
    as_json: bool,
) -> None:
    """Print the estimate of a job."""
    with errors():
        found = plan_job(job, overrides, gpu, gpus, nodes, network_gbps, has_data, _progress)
        if as_json:
            print(json.dumps(asdict(found)))
        else:
            _show(found, Console(), network_gbps)


def _progress(done: int, total: int, what: str) -> None:
    print(f"{what} {done}/{total}" if total else what, file=sys.stderr)


def _show(plan: Plan, console: Console, network_gbps: float | None = None) -> None:
    profile, site, best = plan.profile, plan.site, plan.best
    device = site.device.name if site.device.is_gpu else "CPU"
    print(f"{profile.parameters / 1e6:.4g} M parameters, {best.pace.flops / 1e12:.3g} TFLOP per step")
    print(
        f"{plural(site.workers, 'worker')} on {plural(site.nodes, 'node')}, each with {device} and "
        f"{_gb(site.device.memory_bytes)} of memory; in GB of each:\n"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    terms = [term for term in _TERMS if any(getattr(choice.memory, term) for choice in plan.choices)]
    for name in ("zero", *(_TERMS[term] for term in terms), "total", "rows", "s/step", ""):
        table.add_column(name, justify="left" if name in ("zero", "") else "right", no_wrap=True)
    for choice in plan.choices:
        table.add_row(*_row(choice, terms, plan))
    show(table, whole=True)
    for stage, why in plan.left_out.items():
        console.print(f"zero {stage} is left out: {why}", highlight=False, soft_wrap=True)
    print()
    for name, text in _facts(plan, network_gbps):
        console.print(f"{name:<12}{text}", highlight=False, soft_wrap=True)


def _row(choice: Choice, terms: list[str], plan: Plan) -> list[str]:
    sizes = [f"{getattr(choice.memory, term) / 1e9:.2f}" for term in terms]
    verdict = "best" if choice is plan.best else "as written" if choice is plan.as_written else ""
    verdict = verdict if choice.fits else "too large"
    micro = str(choice.setting.micro_batch)
    return [choice.name, *sizes, f"{choice.memory.total / 1e9:.2f}", micro, f"{choice.pace.total:.3g}", verdict]


def _facts(plan: Plan, network_gbps: float | None) -> list[tuple[str, str]]:
    site, best = plan.site, plan.best
    takes, times = best.pace, f"times or divided by {plan.site.speed.error:g}"
    parts = f"computing {takes.computing:.3g}, communicating {takes.communicating:.3g}, updating {takes.updating:.3g}"
    offloaded = f", offloading {takes.offloading:.3g}" if takes.offloading else ""
    facts = [
        ("step", f"{takes.total:.3g} s ({parts}{offloaded}); MFU {plan.mfu:.0%}, by {site.speed.known_from}"),
        ("throughput", f"{_throughput(plan)}, {times}"),
        ("network", _network(plan, network_gbps)),
        ("data", f"{_rate(plan.needed_bytes_s)} for each worker{_read(plan)}"),
        ("checkpoint", f"{_gb(plan.checkpoint_bytes)}, written in {plan.checkpoint_s:.2g} s during the steps"),
        ("time", _time(plan, times)),
    ]
    if plan.energy_kwh is not None:
        facts.append(("energy", f"{plan.energy_kwh:.3g} kWh at full load, {times}"))
    if plan.assumed:
        facts.append(("assumed", "; ".join(plan.assumed)))
    if best.host_bytes:
        facts.insert(4, ("host", f"{_gb(best.host_bytes)} of a node's memory for each worker"))
    if plan.dollars is not None:
        facts.append(("cost", f"${plan.dollars:.2f}, {times}"))
    setting = best.setting
    facts.append(
        (
            "try",
            f"--set training.zero_stage={setting.zero_stage} "
            f"--set training.micro_batch_size={setting.micro_batch}{_offload(best)}",
        )
    )
    return facts


def _throughput(plan: Plan) -> str:
    if plan.tokens_per_s is not None:
        return f"{plan.tokens_per_s:,.0f} tokens/s"
    return f"{plan.samples_per_s:,.4g} samples/s"


def _network(plan: Plan, gbps: float | None) -> str:
    """Return what a worker sends, and the bandwidth that the plan counts on."""
    site, setting = plan.site, plan.best.setting
    micro = f" with {plural(setting.accumulation, 'micro-batch')}" if setting.accumulation > 1 else ""
    sent = f"{_gb(plan.best.pace.sent_bytes)} sent by each worker in a step{micro}"
    if site.workers == 1:
        return "not used by one worker"
    speed = f"{site.link / 1e9:.3g} GB/s between workers"
    if site.nodes == 1:
        return f"{sent}, at {speed}"
    known = f"{gbps:g} Gb/s" if gbps else f"an assumed {DEFAULT_NETWORK_GBPS:g} Gb/s (--network-gbps)"
    return f"{sent}, at {speed}; each node has {known}"


def _read(plan: Plan) -> str:
    return "" if plan.site.read_bytes_s is None else f"; read here at {_rate(plan.site.read_bytes_s)}"


def _time(plan: Plan, times: str) -> str:
    if plan.hours is None or plan.steps is None:
        return "unknown without the data, as training.epochs gives the length of the run"
    without = "" if plan.evaluating_s is not None else ", without evaluations"
    return f"{timedelta(seconds=round(plan.hours * 3600))} for {plural(plan.steps, 'step')}{without}, {times}"


def _offload(choice: Choice) -> str:
    parts = [part for part in ("optimizer", "parameters") if getattr(choice.setting, f"offload_{part}")]
    return "".join(f" --set training.offload.{part}=cpu" for part in parts)


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def _rate(speed: float) -> str:
    return f"{speed / 1e6:.3g} MB/s" if speed >= 1e5 else f"{speed / 1e3:.3g} kB/s"
