"""A run on the screen: a live line in a terminal, plain lines in a pipe, JSON for programs."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Protocol, TextIO

from drivetrain_workers.protocol.reasons import Reason
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from drivetrain.accounting.summary import describe_cost, describe_time
from drivetrain.api.runs import RunSummary
from drivetrain.cli.tables import FAILED, OK, WAITING
from drivetrain.cli.words import plural
from drivetrain.home import Home
from drivetrain.reporting.assessment import describe_assessment
from drivetrain.reporting.tracking import describe_tracking
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.outcomes import OUTCOMES
from drivetrain.runs.view import RunView
from drivetrain.tracking.tracking_uri import is_server

_REPEAT_S = 60.0
_PLAIN_EVERY_S = 5.0
_FIXES = {  # what to fix before the job can succeed; a resumed run would use its own copy of job and code
    Reason.INPUT: "the input",
    Reason.PREPARE_FAILED: "the data or its settings",
    Reason.USER_CODE: "the job's code",
}
_STAGES = {
    "placing": "waiting for agents",
    "starting": "agents start, ranks join and load",
    "training": "first step",
    "waiting": "before the next attempt",
    "finishing": "sample, assessment, tracking",
}


class Renderer(Protocol):
    """Shows the views of a run, and its summary at the end."""

    def show(self, view: RunView) -> None:
        """Show a newer view of the run."""

    def summary(self, summary: RunSummary) -> None:
        """Show the summary of a run that has ended."""


@contextmanager
def renderer(as_json: bool) -> Iterator[Renderer]:
    """Yield the renderer that fits the output. Only it writes to stdout: the messages of Ray go to a file."""
    with stdout_without_ray() as out:
        if as_json:
            yield JsonLines(out)
        elif out.isatty():
            with Live(console=Console(file=out), refresh_per_second=8, transient=True, redirect_stdout=False) as live:
                yield Terminal(live)
        else:
            yield PlainLines(out)


@contextmanager
def renderer_console() -> Iterator[Console]:
    """Yield a console on stdout for verbs without views; the messages of Ray go to a file, as in `renderer`."""
    with stdout_without_ray() as out:
        yield Console(file=out)


@contextmanager
def stdout_without_ray() -> Iterator[TextIO]:
    """Yield stdout, and redirect what others print there, such as Ray, to a file."""
    out = sys.stdout
    with Home.from_environment().ray_messages.open("a") as messages, redirect_stdout(messages):
        yield out


class JsonLines:
    """Prints every view as one line of JSON, the summary last."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, view: RunView) -> None:
        """Print the view."""
        print(json.dumps(view.to_json()), file=self._out, flush=True)

    def summary(self, summary: RunSummary) -> None:
        """Print the summary."""
        line = {"run_id": summary.run_id, "reason": summary.reason, "facts": summary.facts.to_json()}
        print(json.dumps(line), file=self._out, flush=True)


class PlainLines:
    """Prints a line when the phase changes and every few seconds; an unchanged line is repeated once a minute."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._phase, self._problem, self._line = "", "", ""
        self._printed = self._said = 0.0

    def show(self, view: RunView) -> None:
        """Print a line if one is due."""
        for line in self._lines(view):
            print(line, file=self._out, flush=True)

    def _lines(self, view: RunView) -> Iterator[str]:
        if view.problem and view.problem != self._problem:
            self._problem = view.problem
            yield f"  {self._problem} ({plural(view.restarts, 'restart')} so far)"
        now = time.monotonic()
        if view.phase != self._phase or now - self._printed > _PLAIN_EVERY_S:
            if not self._phase:
                yield f"run {view.run_id}"
            self._phase, self._printed = view.phase, now
            if (view.phase != "ended" or _is_closing(view)) and (
                (line := describe(view)) != self._line or now > self._said + _REPEAT_S
            ):
                self._line, self._said = line, now
                yield line

    def summary(self, summary: RunSummary) -> None:
        """Print the summary."""
        print_summary(Console(file=self._out, width=100), summary)


class Terminal:
    """Draws a progress bar in place; problems stay above it."""

    def __init__(self, live: Live) -> None:
        self._live, self._console = live, live.console
        self._phase, self._problem = "", ""

    def show(self, view: RunView) -> None:
        """Redraw the bar."""
        if not self._phase:
            self._console.print(f"run [bold]{view.run_id}[/bold]", highlight=False)
        if view.problem and view.problem != self._problem:
            self._problem = view.problem
            problem = f"  {self._problem} ({plural(view.restarts, 'restart')} so far)"
            self._console.print(problem, style="yellow", markup=False, highlight=False)
        self._phase = view.phase
        done, total = (view.step, view.steps) if view.steps else view.preparing[:2]
        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(total=total or 1, completed=done, width=24), describe(view))
        self._live.update(line)

    def summary(self, summary: RunSummary) -> None:
        """Replace the bar by the summary."""
        self._live.update("")
        self._live.stop()
        print_summary(self._console, summary)


def describe(view: RunView) -> str:
    """Return one line about the state of a run."""
    phase = view.phase
    if phase == "preparing":
        done, total, what = view.preparing
        return f"preparing   {what or 'the dataset'}" + (f" {done}/{total}" if total else "")
    if phase in ("queued", "ready"):
        return f"{phase:<11} {view.waiting}".rstrip()
    if _is_closing(view):
        return f"{'finishing':<11} {view.waiting}"
    if phase not in ("training", "stopping") or view.loss is None:
        return f"{phase:<11} {_STAGES.get(phase, '')}".rstrip()
    parts = [f"{phase:<11} step {view.step}/{view.steps}", f"loss {view.loss:.4f}"]
    if view.eval_loss is not None:
        parts.append(f"eval {view.eval_loss:.4f}")
    parts += [f"{name} {value:.4g}" for name, value in view.metrics.items()]
    parts.append(_throughput(view.tokens_per_s or 0.0, view.facts))
    parts.append(f"data wait {view.data_wait_share or 0.0:.1%}")
    parts.append(f"ETA {timedelta(seconds=round(view.eta_s or 0.0))}")
    return "  ".join(parts)


def _is_closing(view: RunView) -> bool:
    """Return whether a run has ended, and what is left to do takes long enough to say so."""
    return view.phase == "ended" and not view.facts.released and bool(view.waiting)


def print_summary(console: Console, summary: RunSummary) -> None:
    """Print how a run ended, its results, their locations, and what to do next."""
    facts, rows = summary.facts, [*_losses(summary.facts), *_resources(summary.facts)]
    if facts.assessment:
        rows += describe_assessment(facts.assessment)
    if facts.dataset:
        made = "prepared in this run" if facts.dataset_made else "found, nothing to prepare"
        rows.append(("dataset", f"{facts.dataset} ({made})"))
    if skipped := facts.skipped_records:
        first = "; ".join(facts.skipped_first)
        rows.append(("skipped", f"{plural(skipped, 'bad record')}, the first: {first}"))
    rows += [("data", note) for note in facts.data_notes]
    if facts.checkpoint:
        rows.append(("checkpoint", facts.checkpoint))
    if facts.stored:
        rows.append(("stored", facts.stored))
    rows += _tracking(summary)
    rows += [(title, text) for title, text in (("sample", facts.sample), ("note", facts.problem)) if text]
    if fix := next((fix for reason, fix in _FIXES.items() if reason == summary.reason), ""):
        rows.append(("next", f"fix {fix} and run the job again"))
        if summary.reason == Reason.USER_CODE and facts.dataset:  # otherwise it failed before there were ranks
            rows.append(("traceback", f"drivetrain logs {summary.run_id}"))
    elif not summary.succeeded:
        rows.append(("resume", f"drivetrain resume {summary.run_id}"))
    elif facts.sample:
        rows.append(("try", f'drivetrain predict {summary.run_id} "..."'))
    color = OK if summary.succeeded else WAITING if summary.reason == Reason.CANCELLED else FAILED
    outcome = None if summary.succeeded else next((OUTCOMES[r] for r in Reason if r == summary.reason), None)
    meaning = f": {outcome.meaning}" if outcome else ""
    console.print(f"[bold {color}]{summary.reason}[/]{meaning}  {summary.run_id}", highlight=False, soft_wrap=True)
    if facts.detail:
        rows.insert(0, ("reason", facts.detail))
    for title, value in rows:
        lines = str(value).replace("\n", "\n" + " " * 14)
        console.print(f"  {title:<11} {lines}", highlight=False, markup=False, soft_wrap=True)


def _losses(facts: RunFacts) -> list[tuple[str, str]]:
    """Return the final losses; for language with the entropy of the tokens, which a model must beat."""
    entropy = facts.unigram_entropy
    unit = " nats per token" if entropy is not None else ""
    rows = []
    if facts.train_loss is not None:
        rows.append(("train loss", f"{facts.train_loss:.4f}{unit}"))
    if facts.eval_loss is not None:
        beaten = f" (unigram entropy {entropy:.4f})" if entropy is not None else ""
        rows.append(("eval loss", f"{facts.eval_loss:.4f}{unit}{beaten}"))
    rows += [(name, f"{value:.4g}") for name, value in facts.metrics.items()]
    return rows


def _resources(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield throughput, memory, time and cost."""
    if facts.tokens_per_s:
        yield "throughput", _throughput(facts.tokens_per_s, facts)
    if facts.peak_bytes:
        yield "memory", f"at most {facts.peak_bytes / 1e9:.2f} GB per rank"
    if facts.account:
        yield "time", describe_time(facts.account)
        yield "cost", describe_cost(facts.account)


def _throughput(per_s: float, facts: RunFacts) -> str:
    return f"{per_s:,.0f} {facts.counted_in}/s"


def _tracking(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """Yield the MLflow run, and whether MLflow has received everything."""
    facts = summary.facts
    if facts.mlflow_run_id:
        yield "MLflow run", f"{facts.mlflow_run_id} in experiment {facts.mlflow_experiment}"
        yield "MLflow UI", _ui_command(facts.mlflow_uri)
    yield from describe_tracking(summary.run_id, facts)


def _ui_command(uri: str) -> str:
    return uri if is_server(uri) else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
