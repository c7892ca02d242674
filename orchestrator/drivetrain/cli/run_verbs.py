"""The verbs on runs, which work alike for local runs and for those of a server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from drivetrain_pipelines.errors import InputError

from drivetrain.accounting.summary import describe_cost, describe_time
from drivetrain.api import runs as local_runs
from drivetrain.api.interface import RunInfo
from drivetrain.api.runs import RunSummary
from drivetrain.cli.errors import TIMED_OUT, errors, exit_as
from drivetrain.cli.paging import first
from drivetrain.cli.place import runs_of, show_place
from drivetrain.cli.render import renderer, stdout_without_ray
from drivetrain.cli.tables import Column, phase_cell, print_table
from drivetrain.cli.words import age
from drivetrain.reporting.tracking import describe_tracking

_COLUMNS = (
    Column("run"),
    Column("user", optional=3),
    Column("phase"),
    Column("step", right=True),
    Column("age", right=True, optional=2),
    Column("reason", wrap=True, optional=1),
)


def list_runs(server: str | None, limit: int | None, as_json: bool) -> None:
    """`drivetrain list`."""
    with runs_of(server) as runs:
        shown = [*first(runs.all(), limit)]
        show_place(runs, as_json)
        _show(shown, as_json)
        if not shown and not as_json:
            print("no run yet; `drivetrain run JOB` starts one")


def status(server: str | None, run: str, as_json: bool) -> None:
    """`drivetrain status`."""
    with runs_of(server) as runs:
        found = runs.status(run)
        show_place(runs, as_json)
        if as_json:
            print(json.dumps(found.to_json()))
            return
        print(found.id)
        for title, value in [*_facts(found), *describe_tracking(found.id, found.facts)]:
            if value:
                print(f"  {title:13} {value}")
        print("  history")
        for entry in found.history:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.time))
            print(f"    {when}  {entry.phase:10} {entry.why}".rstrip())


def logs(server: str | None, run: str, rank: int | None, follow: bool, as_json: bool) -> None:
    """`drivetrain logs`."""
    with runs_of(server) as runs:
        said = False
        for line in runs.logs(run, rank, follow):
            if not said:
                show_place(runs, as_json)
                said = True
            print(json.dumps(_line(line, rank), ensure_ascii=False) if as_json else line, flush=True)
        if not said:
            show_place(runs, as_json)


def wait(server: str | None, run: str, timeout_s: float | None, as_json: bool) -> None:
    """`drivetrain wait`."""
    with runs_of(server) as runs:
        try:
            found = runs.wait(run, timeout_s)
        except TimeoutError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(TIMED_OUT) from None
        show_place(runs, as_json)
        _show([found], as_json)
        exit_as(found.reason)


def cancel(server: str | None, run: str, as_json: bool, address: str | None) -> None:
    """`drivetrain cancel`."""
    with runs_of(server, address) as runs:
        with stdout_without_ray():
            found = runs.cancel(run)
        show_place(runs, as_json)
        _show([found], as_json)


def resume(server: str | None, run: str, as_json: bool, address: str | None) -> None:
    """`drivetrain resume`: on a server it returns, here it follows the run, whose Ray may end with the command."""
    if server:
        with runs_of(server) as runs:
            found = runs.resume(run)
            show_place(runs, as_json)
            _show([found], as_json)
        return
    _follow_here(local_runs.resume, run, as_json, address)


def retry(server: str | None, run: str, as_json: bool, address: str | None) -> None:
    """`drivetrain retry`: as `resume`."""
    if server:
        with runs_of(server) as runs:
            found = runs.retry(run)
            show_place(runs, as_json)
            _show([found], as_json)
        return
    _follow_here(local_runs.retry, run, as_json, address)


def predict(
    server: str | None,
    run: str,
    inputs: list[str],
    max_tokens: int | None,
    temperature: float | None,
    seed: int,
    pictures: str,
    as_json: bool,
) -> None:
    """`drivetrain predict`."""
    with runs_of(server) as runs:
        sampling: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        rows = runs.predict(run, inputs, pictures=pictures, **sampling)
        show_place(runs, as_json)
        for row in rows:
            if as_json:
                print(json.dumps(row, ensure_ascii=False))
            elif row.keys() == {"input", "text"}:
                print(row["text"] if len(rows) == 1 else f"{row['input']}: {row['text']}")
            else:
                said = (f"{name} {_rounded(value)}" for name, value in row.items() if name != "input")
                print(f"{row['input']}: {', '.join(said)}")


def report(server: str | None, run: str, target: str | None, as_json: bool) -> None:
    """`drivetrain report`."""
    with runs_of(server) as runs:
        if target and not Path(target).absolute().parent.is_dir():
            raise InputError("--to", repr(target), "a file in an existing folder")
        page = runs.report(run, Path(target) if target else None)
        show_place(runs, as_json)
        print(json.dumps({"report": str(page)}) if as_json else page)


def sync(server: str | None, run: str, timeout_s: float, as_json: bool) -> None:
    """`drivetrain sync`."""
    with runs_of(server) as runs:
        runs.sync(run, timeout_s)
        show_place(runs, as_json)
        notes = runs.status(run).facts.tracking_notes
        if as_json:
            print(json.dumps({"run": run, "synced": True, "notes": notes}))
            return
        print("MLflow has received everything" + (" that it accepts:" if notes else ""))
        for note in notes:
            print(f"  {note}")


def _follow_here(change: Callable[..., RunSummary], run: str, as_json: bool, address: str | None) -> None:
    from drivetrain.api.local import LocalRuns  # here: a client of a server need not have its packages

    with errors():
        with LocalRuns() as runs:
            run = runs.record(run).id  # before Ray starts, which takes seconds
        with renderer(as_json) as out:
            summary = change(run, address, out.show)
            out.summary(summary)
        exit_as(summary.reason)


def _show(runs: list[RunInfo], as_json: bool) -> None:
    if as_json:
        for run in runs:
            print(json.dumps(run.to_json()))
    elif runs:
        print_table(_COLUMNS, [_row(run) for run in runs])


def _row(run: RunInfo) -> tuple[Any, ...]:
    step = f"{run.step}/{run.steps}" if run.steps else str(run.step)
    return run.id, run.user, phase_cell(run.phase, run.reason), step, age(run.created), run.reason


def _facts(run: RunInfo) -> list[tuple[str, str]]:
    """Return titles and values of a run's state; empty values are not shown."""
    view, progress = run.view, run.progress
    assert view
    assert run.account
    waiting = f": {view.waiting}" if run.phase in ("queued", "ready") and view.waiting else ""
    return [
        ("user", run.user),
        ("phase", run.phase + waiting),
        ("step", f"{run.step} of {run.steps}" if run.steps else ""),
        ("checkpoint", f"step {progress.committed_step}" if progress.committed_step else ""),
        ("loss", "" if view.loss is None else f"{view.loss:.4f}"),
        ("eval loss", "" if view.eval_loss is None else f"{view.eval_loss:.4f}"),
        ("restarts", str(progress.restarts) if progress.restarts else ""),
        ("last error", view.problem),
        ("time", describe_time(run.account)),
        ("cost", describe_cost(run.account)),
        ("reason", ": ".join(filter(None, (run.reason, run.facts.detail)))),
        ("updated", f"{age(run.updated)} ago"),
    ]


def _line(line: str, rank: int | None) -> dict[str, Any]:
    if rank is not None:
        return {"rank": rank, "line": line}
    name, _, text = line.partition(": ")
    number = name.removeprefix("rank-")
    return {"rank": int(number), "line": text} if number.isdigit() else {"rank": None, "line": line}


def _rounded(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_rounded, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
