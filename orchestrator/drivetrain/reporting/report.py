"""A self-contained HTML report of a run: result, metrics, time accounting, history and settings."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

from drivetrain_pipelines.storage.json_files import JsonObject
from jinja2 import Environment, PackageLoader, select_autoescape

from drivetrain.accounting.goodput import CLASSES
from drivetrain.accounting.plot import draw_goodput
from drivetrain.accounting.run_account import account_of, timeline_of
from drivetrain.accounting.summary import describe_cost, describe_time
from drivetrain.home import Home
from drivetrain.job.spec import flatten
from drivetrain.reporting.assessment import describe_assessment
from drivetrain.reporting.tracking import describe_tracking
from drivetrain.runs.store import RunRecord, RunStore
from drivetrain.tracking.loss_plots import draw_loss
from drivetrain.tracking.spool import read_records

_IMAGE_SUFFIXES = (".png", ".jpg")
_MAX_PREDICTIONS = 3
_ASSESSMENT_TITLES = {"attributions": "Attributions", "reliability": "Confidence and accuracy"}


def write_report(run_id: str, target: Path | None = None) -> Path:
    """Write the report of a run, by default as ``report.html`` in its folder; return the path.

    Raises:
        InputError: no run or several runs match.
    """
    home = Home.from_environment()
    store = RunStore(home.database_url)
    record = store.get(run_id)
    folder, account = home.run(record.id), account_of(home, store, record.id)
    metrics = (entry for entry in read_records(folder.spool) if entry["op"] == "metrics")
    loss, goodput = folder.path / "loss.png", folder.path / "goodput.png"
    draw_loss(metrics, record.facts.unigram_entropy, record.id, loss)
    draw_goodput(timeline_of(home, store, record.id), record.id, goodput)
    predictions = sorted(path for path in folder.predictions.rglob("*") if path.suffix in _IMAGE_SUFFIXES)
    assessment = [(_ASSESSMENT_TITLES[p.stem], _embedded(p)) for p in sorted(folder.assessment.glob("*.png"))]
    page = _template().render(
        run=record,
        created=_when(time.time()),
        summary=_summary(record, account.to_json()),
        account=[(name, seconds, CLASSES[name]) for name, seconds in account.goodput.seconds.items()],
        wall_s=account.goodput.wall_s,
        pictures=[("Loss", _embedded(loss)), *assessment, ("Time", _embedded(goodput))],
        predictions=[(path.stem, _embedded(path)) for path in predictions[-_MAX_PREDICTIONS:]],
        sample=record.facts.sample or "",
        settings=flatten(folder.resolved()),
        history=[(_when(at), state.phase, why) for at, why, state in store.history(record.id)],
    )
    target = target or folder.path / "report.html"
    target.write_text(page, "utf-8")
    return target


def _template() -> Any:
    environment = Environment(loader=PackageLoader("drivetrain.reporting", "."), autoescape=select_autoescape(["j2"]))
    return environment.get_template("report.html.j2")


def _summary(record: RunRecord, account: JsonObject) -> list[tuple[str, str]]:
    facts, progress = record.facts, record.state.progress
    rows = [
        ("user", record.user),
        ("state", facts.reason or record.state.phase),
        ("reason", facts.detail),
        ("steps", str(progress.step)),
        ("restarts", str(progress.restarts)),
        ("train loss", _number(facts.train_loss)),
        ("eval loss", _number(facts.eval_loss)),
        *((name, _number(value)) for name, value in facts.metrics.items()),
        *(describe_assessment(facts.assessment) if facts.assessment is not None else ()),
        ("parameters", f"{facts.parameters:,}" if facts.parameters is not None else ""),
        (
            "throughput",
            f"{facts.tokens_per_s:,.0f} {facts.counted_in}/s" if facts.tokens_per_s else "",
        ),
        ("memory", f"at most {facts.peak_bytes / 1e9:.2f} GB per rank" if facts.peak_bytes is not None else ""),
        ("plan", _plan_comparison(facts.plan, record) if facts.plan is not None else ""),
        ("time", describe_time(account)),
        ("cost", describe_cost(account)),
        ("dataset", facts.dataset or ""),
        ("checkpoint", facts.checkpoint or ""),
        ("MLflow run", facts.mlflow_run_id),
        ("tracking", "; ".join(text for _, text in describe_tracking(record.id, facts))),
        ("note", facts.problem),
    ]
    return [(title, value) for title, value in rows if value]


def _plan_comparison(plan: JsonObject, record: RunRecord) -> str:
    """Compare the predictions of the plan with the measured values."""
    settings = f"zero {plan['zero_stage']}, micro-batches of {plan['micro_batch_size']}"
    peak, step_s = record.facts.peak_bytes, record.facts.step_s
    memory = f"{plan['peak_bytes'] / 1e9:.2f} GB predicted" + (f", {peak / 1e9:.2f} GB used" if peak else "")
    pace = f"{plan['step_s']:.3g} s per step predicted" + (f", {step_s:.3g} s measured" if step_s else "")
    return f"{settings}; {memory}; {pace}"


def _embedded(path: Path) -> str:
    kind = "png" if path.suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
