"""Output about a run for a terminal, a pipe and a program."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drivetrain.api.runs import RunSummary
from drivetrain.cli import render as render_module
from drivetrain.cli.render import JsonLines, PlainLines, Terminal, describe, print_summary, renderer, renderer_console
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.outcomes import OUTCOMES
from drivetrain.runs.view import RunView
from drivetrain_workers.protocol.reasons import Reason
from rich.console import Console
from rich.live import Live

from tests.clock import Clock
from tests.unit.runs import home_in

ACCOUNT = {
    "wall_s": 100.0,
    "goodput": 0.5,
    "seconds": {"computing": 50.0, "queued": 50.0},
    "worker_hours": 0.5,
    "dollars": 1.25,
    "energy_kwh": None,
    "energy_from": "",
    "co2_kg": None,
}
LANGUAGE = RunFacts(
    mlflow_uri="sqlite:////home/mlflow.db",
    mlflow_experiment="toy",
    mlflow_run_id="abc",
    dataset="/data/words/v1",
    dataset_made=True,
    unigram_entropy=5.5,
    checkpoint="/runs/toy-1/checkpoints/step-4",
    stored="s3://bucket/toy-1",
    train_loss=3.25,
    eval_loss=3.5,
    tokens_per_s=12345.6,
    peak_bytes=1_500_000_000,
    sample="The cat\nsat",
    account=ACCOUNT,
    reason="completed",
    tracked=True,
)
CLASSIFIER = RunFacts(
    dataset="/data/digits/v1",
    dataset_made=False,
    counted_in="samples",
    train_loss=0.25,
    eval_loss=0.5,
    metrics={"accuracy": 0.97654},
    tokens_per_s=1000.0,
    assessment={
        "scores": {"accuracy": 0.97, "log_loss": 0.1},
        "slices": [{"name": "eights", "accuracy": 0.5, "loss": 2.0, "decisions": 1200}],
    },
    reason="completed",
)


def training(**changes: Any) -> RunView:
    ordinary = {"phase": "training", "step": 3, "steps": 10, "loss": 1.5, "tokens_per_s": 2000.0, "eta_s": 65.4}
    return RunView("toy-1", **{**ordinary, "data_wait_share": 0.125, **changes})


def shown(summary: RunSummary) -> list[str]:
    """Return the lines of a summary, independent of the width of the console."""
    out = io.StringIO()
    print_summary(Console(file=out, width=40), summary)
    return out.getvalue().splitlines()


def rows(lines: list[str]) -> dict[str, str]:
    """Return titles and values; a continuation line belongs to the title before it."""
    found: dict[str, str] = {}
    title = ""
    for line in lines[1:]:
        title = line[2:13].strip() or title
        found[title] = f"{found[title]}|{line[14:]}" if title in found else line[14:]
    return found


# Lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (RunView("r", "preparing"), "preparing   the dataset"),
        (RunView("r", "preparing", preparing=(2, 9, "making shards")), "preparing   making shards 2/9"),
        (RunView("r", "queued", waiting="for a GPU"), "queued      for a GPU"),
        (RunView("r", "queued"), "queued"),
        (RunView("r", "starting"), "starting    agents start, ranks join and load"),
        (RunView("r", "training"), "training    first step"),
        (RunView("r", "ended"), "ended"),
        (training(), "training    step 3/10  loss 1.5000  2,000 tokens/s  data wait 12.5%  ETA 0:01:05"),
        (
            training(phase="stopping", eval_loss=2.0, metrics={"accuracy": 0.123456}, facts=CLASSIFIER),
            "stopping    step 3/10  loss 1.5000  eval 2.0000  accuracy 0.1235  2,000 samples/s  data wait 12.5%  "
            "ETA 0:01:05",
        ),
        (
            training(tokens_per_s=None, data_wait_share=None, eta_s=None),
            "training    step 3/10  loss 1.5000  0 tokens/s  data wait 0.0%  ETA 0:00:00",
        ),
    ],
)
def test_a_line_says_where_a_run_is(view: RunView, line: str) -> None:
    assert describe(view) == line


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(render_module, "time", found)
    return found


@pytest.fixture
def plain(clock: Clock) -> Callable[[RunView], list[str]]:
    """Show a view; return its lines."""
    out = io.StringIO()
    lines = PlainLines(out)

    def show(view: RunView) -> list[str]:
        out.seek(0)
        out.truncate()
        lines.show(view)
        return out.getvalue().splitlines()

    return show


def test_a_pipe_gets_a_line_when_the_phase_changes_and_then_every_few_seconds(
    plain: Callable[[RunView], list[str]], clock: Clock
) -> None:
    assert plain(RunView("toy-1", "queued")) == ["run toy-1", "queued"]
    assert plain(RunView("toy-1", "preparing")) == ["preparing   the dataset"]
    assert len(plain(training(step=1))) == 1
    clock.now += 4
    assert plain(training(step=2)) == []
    clock.now += 2
    (line,) = plain(training(step=3))
    assert "step 3/10" in line


def test_a_line_that_says_the_same_comes_once_a_minute(plain: Callable[[RunView], list[str]], clock: Clock) -> None:
    queued = RunView("toy-1", "queued", waiting="for a GPU")
    plain(queued)
    said = 0
    for _ in range(20):
        clock.now += 6
        said += len(plain(queued))
    assert said == 1


def test_a_problem_is_told_once_and_at_once(plain: Callable[[RunView], list[str]]) -> None:
    plain(training())
    problem = training(problem="rank 1 was killed", restarts=1)
    assert plain(problem) == ["  rank 1 was killed (1 restart so far)"]
    assert plain(problem) == []
    assert plain(training(problem="rank 0 hung", restarts=2)) == ["  rank 0 hung (2 restarts so far)"]


def test_the_end_is_left_to_the_summary(plain: Callable[[RunView], list[str]]) -> None:
    plain(training())
    assert plain(RunView("toy-1", "ended")) == []


def test_a_wait_for_mlflow_after_the_end_is_said(plain: Callable[[RunView], list[str]]) -> None:
    plain(training())
    closing = RunView("toy-1", "ended", waiting="MLflow does not receive the rest, waiting 55 s more: refused")
    assert plain(closing) == [f"finishing   {closing.waiting}"]
    assert plain(closing) == []
    closing.facts = closing.facts.updated(released=True)
    assert describe(closing) == "ended"


def test_programs_get_every_view_and_then_the_summary() -> None:
    out = io.StringIO()
    lines = JsonLines(out)
    view = training(facts=CLASSIFIER)
    lines.show(view)
    lines.summary(RunSummary("toy-1", "completed", CLASSIFIER))
    first, last = [json.loads(line) for line in out.getvalue().splitlines()]
    assert RunView.from_json(first) == view
    assert last["run_id"] == "toy-1"
    assert last["reason"] == "completed"
    assert RunFacts.from_json(last["facts"]) == CLASSIFIER


def test_a_terminal_keeps_problems_above_the_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        terminal = Terminal(live)
        terminal.show(RunView("toy-1", "preparing", preparing=(1, 4, "making shards")))
        terminal.show(training(problem="[red] rank 1 was killed", restarts=1))
        live.refresh()
        terminal.summary(RunSummary("toy-1", "completed", CLASSIFIER))
    said = out.getvalue()
    assert said.count("toy-1") == 2
    assert "[red] rank 1 was killed (1 restart so far)" in said, "what is not ours is no markup"
    assert "step 3/10" in said
    assert said.index("rank 1 was killed") < said.index("eval loss")


def test_only_the_renderer_writes_to_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Output of libraries during a run does not mix with lines of JSON."""
    home = home_in(tmp_path, monkeypatch)
    stdout = sys.stdout
    with renderer(as_json=True) as out:
        print("a word of Ray's")
        out.show(training())
    with renderer(as_json=False) as out:
        assert isinstance(out, PlainLines)
    with renderer_console() as console:
        print("another")
        console.print("made")
    assert sys.stdout is stdout
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0])["step"] == 3
    assert lines[1:] == ["made"]
    assert (home.path / "ray-messages.log").read_text() == "a word of Ray's\nanother\n"


# Summaries --------------------------------------------------------------------------------------------------------


def test_the_summary_of_a_language_model() -> None:
    lines = shown(RunSummary("toy-1", "completed", LANGUAGE))
    assert lines[0] == "completed  toy-1"
    assert rows(lines) == {
        "train loss": "3.2500 nats per token",
        "eval loss": "3.5000 nats per token (unigram entropy 5.5000)",
        "throughput": "12,346 tokens/s",
        "memory": "at most 1.50 GB per rank",
        "time": "0:01:40, goodput 50%: computing 50%, queued 50%",
        "cost": "0.5 worker hours, $1.25",
        "dataset": "/data/words/v1 (prepared in this run)",
        "checkpoint": "/runs/toy-1/checkpoints/step-4",
        "stored": "s3://bucket/toy-1",
        "MLflow run": "abc in experiment toy",
        "MLflow UI": "mlflow ui --backend-store-uri sqlite:////home/mlflow.db",
        "sample": "The cat|sat",
        "try": 'drivetrain predict toy-1 "..."',
    }


def test_the_summary_of_a_classifier() -> None:
    found = rows(shown(RunSummary("digits-1", "completed", CLASSIFIER)))
    assert found["train loss"] == "0.2500"
    assert found["eval loss"] == "0.5000"
    assert found["accuracy"] == "0.9765"
    assert found["throughput"] == "1,000 samples/s"
    assert found["assessed"] == "accuracy 0.97, log loss 0.1"
    assert found["worst slice"] == "eights: accuracy 0.5, loss 2, of 1,200"
    assert found["dataset"] == "/data/digits/v1 (found, nothing to prepare)"
    assert not {"sample", "try", "resume", "reason", "MLflow run"} & found.keys()


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason != Reason.COMPLETED])
def test_a_run_that_did_not_complete_says_why_and_what_to_do(reason: Reason) -> None:
    facts = RunFacts(detail="rank 1: [Errno 28]", sample="text", dataset="/data/toy/v1")
    lines = shown(RunSummary("toy-1", str(reason), facts))
    assert lines[0] == f"{reason}: {OUTCOMES[reason].meaning}  toy-1"
    found = rows(lines)
    assert found["reason"] == "rank 1: [Errno 28]"
    assert "try" not in found
    fixes = {
        Reason.INPUT: "the input",
        Reason.PREPARE_FAILED: "the data or its settings",
        Reason.USER_CODE: "the job's code",
    }
    if reason in fixes:
        assert found["next"] == f"fix {fixes[reason]} and run the job again"
        assert "resume" not in found
        assert ("traceback" in found) == (reason == Reason.USER_CODE)
    else:
        assert found["resume"] == "drivetrain resume toy-1"


def test_a_reason_of_a_newer_version_is_shown_as_it_is() -> None:
    assert shown(RunSummary("toy-1", "moonlight", RunFacts()))[0] == "moonlight  toy-1"


def test_what_tracking_lacks_is_told_with_its_remedy() -> None:
    facts = LANGUAGE.updated(
        mlflow_uri="http://mlflow:5000", tracked=False, tracking_problem="connection refused", problem="no upload",
        skipped_records=3, skipped_first=("a.txt:1", "a.txt:7"), data_notes=("data.source: 2 ignored",),
    )  # fmt: skip
    found = rows(shown(RunSummary("toy-1", "completed", facts)))
    assert found["MLflow UI"] == "http://mlflow:5000"
    kept = "MLflow has not received everything; the rest is kept, and `drivetrain sync toy-1` sends it"
    assert found["tracking"] == f"{kept}|last error: connection refused"
    assert found["skipped"] == "3 bad records, the first: a.txt:1; a.txt:7"
    assert found["data"] == "data.source: 2 ignored"
    assert found["note"] == "no upload"


def test_words_of_others_are_no_markup() -> None:
    facts = CLASSIFIER.updated(sample="[bold]x[/bold] [/]")
    assert rows(shown(RunSummary("toy-1", "completed", facts)))["sample"] == "[bold]x[/bold] [/]"
