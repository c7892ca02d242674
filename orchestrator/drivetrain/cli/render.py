"""Showing a run: a live line in a terminal, plain lines elsewhere, JSON for machines."""

from __future__ import annotations

import json
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
from drivetrain.home import Home
from drivetrain.reporting.assessment import describe_assessment
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.outcomes import OUTCOMES
from drivetrain.runs.view import RunView
from drivetrain.tracking.tracking_uri import is_server

_AGAIN_S = 60.0
_PLAIN_EVERY_S = 5.0
_WAITS_FOR = {
    "placing": "for agents",
    "starting": "agents warm up, ranks join and load",
    "training": "first step",
    "waiting": "before the next try",
    "finishing": "sample, assessment, tracking",
}


class Renderer(Protocol):
    """Shows views while a run goes on, and its summary at the end."""

    def show(self, view: RunView) -> None:
        """A newer view of the run."""

    def summary(self, summary: RunSummary) -> None:
        """The run has ended."""


@contextmanager
def renderer(as_json: bool) -> Iterator[Renderer]:
    """The renderer that fits the output. It alone writes to stdout: what Ray prints of its own goes to a file."""
    out = sys.stdout
    log = Home.from_environment().path / "ray-messages.log"
    with log.open("a") as ray_messages, redirect_stdout(ray_messages):
        if as_json:
            yield JsonLines(out)
        elif out.isatty():
            with Live(console=Console(file=out), refresh_per_second=8, transient=True, redirect_stdout=False) as live:
                yield Terminal(live)
        else:
            yield PlainLines(out)


@contextmanager
def renderer_console() -> Iterator[Console]:
    """A console on stdout, for verbs without views; what Ray prints goes to a file, as in `renderer`."""
    out = sys.stdout
    log = Home.from_environment().path / "ray-messages.log"
    with log.open("a") as ray_messages, redirect_stdout(ray_messages):
        yield Console(file=out)


class JsonLines:
    """Every view as one line of JSON, the summary last."""

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
    """A line when the phase changes, and one every few seconds; the same one again once a minute."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._phase, self._problem, self._line = "", "", ""
        self._printed = self._said = 0.0

    def show(self, view: RunView) -> None:
        """Print a line if it is time for one."""
        for line in self._lines(view):
            print(line, file=self._out, flush=True)

    def _lines(self, view: RunView) -> Iterator[str]:
        if view.problem and view.problem != self._problem:
            self._problem = view.problem
            yield f"  {self._problem}; restarts so far: {view.restarts}"
        now = time.monotonic()
        if view.phase != self._phase or now - self._printed > _PLAIN_EVERY_S:
            if not self._phase:
                yield f"run {view.run_id}"
            self._phase, self._printed = view.phase, now
            if view.phase != "ended" and ((line := describe(view)) != self._line or now > self._said + _AGAIN_S):
                self._line, self._said = line, now
                yield line

    def summary(self, summary: RunSummary) -> None:
        """Print the summary."""
        print_summary(Console(file=self._out, width=100), summary)


class Terminal:
    """A progress bar that is redrawn in place; phases and problems stay above it."""

    def __init__(self, live: Live) -> None:
        self._live, self._console = live, live.console
        self._phase, self._problem = "", ""

    def show(self, view: RunView) -> None:
        """Redraw."""
        if not self._phase:
            self._console.print(f"run [bold]{view.run_id}[/bold]", highlight=False)
        if view.problem and view.problem != self._problem:
            self._problem = view.problem
            problem = f"  {self._problem}; restarts so far: {view.restarts}"
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
    """One line on where a run is."""
    phase = view.phase
    if phase == "preparing":
        done, total, what = view.preparing
        return f"preparing   {what or 'the dataset'}" + (f" {done}/{total}" if total else "")
    if phase in ("queued", "ready"):
        return f"{phase:<11} {view.waiting}".rstrip()
    if phase not in ("training", "stopping") or view.loss is None:
        return f"{phase:<11} {_WAITS_FOR.get(phase, '')}".rstrip()
    parts = [f"{phase:<11} step {view.step}/{view.steps}", f"loss {view.loss:.4f}"]
    if view.eval_loss is not None:
        parts.append(f"eval {view.eval_loss:.4f}")
    parts += [f"{name} {value:.4g}" for name, value in view.metrics.items()]
    parts.append(_throughput(view.tokens_per_s or 0.0, view.facts))
    parts.append(f"data wait {view.data_wait_share or 0.0:.1%}")
    parts.append(f"ETA {timedelta(seconds=round(view.eta_s or 0.0))}")
    return "  ".join(parts)


def print_summary(console: Console, summary: RunSummary) -> None:
    """How the run ended, what it reached, where everything is, and what to do next."""
    facts, rows = summary.facts, [*_losses(summary.facts), *_resources(summary.facts)]
    if facts.assessment:
        rows += describe_assessment(facts.assessment)
    if facts.dataset:
        made = "prepared in this run" if facts.dataset_made else "found, nothing to prepare"
        rows.append(("dataset", f"{facts.dataset} ({made})"))
    if skipped := facts.skipped_records:
        rows.append(("skipped", f"{skipped} bad records, the first: {'; '.join(facts.skipped_first)}"))
    if facts.checkpoint:
        rows.append(("checkpoint", facts.checkpoint))
    if facts.stored:
        rows.append(("stored", facts.stored))
    rows += _tracking(summary)
    rows += [(title, text) for title, text in (("sample", facts.sample), ("note", facts.problem)) if text]
    if summary.reason == Reason.INPUT:
        rows.append(("then", "mend that, and run the job again"))
    elif not summary.succeeded:
        rows.append(("go on with", f"drivetrain resume {summary.run_id}"))
    elif facts.sample:
        rows.append(("try", f'drivetrain predict {summary.run_id} "..."'))
    color = "green" if summary.succeeded else "red"
    outcome = None if summary.succeeded else next((OUTCOMES[r] for r in Reason if r == summary.reason), None)
    meaning = f": {outcome.meaning}" if outcome else ""
    console.print(f"[bold {color}]{summary.reason}[/]{meaning}  {summary.run_id}", highlight=False, soft_wrap=True)
    rows.insert(0, ("because", facts.detail))
    for title, value in rows:
        lines = str(value).replace("\n", "\n" + " " * 14)
        console.print(f"  {title:<11} {lines}", highlight=False, markup=False, soft_wrap=True)


def _losses(facts: RunFacts) -> list[tuple[str, str]]:
    """Final losses; those of language beside the entropy of its tokens, which a model must beat."""
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
    """What the run has taken, and how fast it was."""
    if facts.tokens_per_s:
        yield "throughput", _throughput(facts.tokens_per_s, facts)
    if facts.peak_bytes:
        yield "memory", f"at most {facts.peak_bytes / 1e9:.2f} GB for a rank"
    if facts.account:
        yield "time", describe_time(facts.account)
        yield "cost", describe_cost(facts.account)


def _throughput(per_s: float, facts: RunFacts) -> str:
    return f"{per_s:,.0f} {facts.counted_in}/s"


def _tracking(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """Where MLflow has the run, and what it lacks of it."""
    facts = summary.facts
    if facts.mlflow_run_id:
        yield "MLflow run", f"{facts.mlflow_run_id} in experiment {facts.mlflow_experiment}"
        yield "MLflow UI", _ui_command(facts.mlflow_uri)
    if facts.tracked is False:
        sync = f"drivetrain sync {summary.run_id}"
        yield "tracking", f"MLflow has not taken everything; it is kept, and `{sync}` ships it"
        if facts.tracking_problem:
            yield "", f"its server: {facts.tracking_problem}"


def _ui_command(uri: str) -> str:
    return uri if is_server(uri) else f"mlflow ui --backend-store-uri {uri}"
