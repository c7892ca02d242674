"""Parsing of the verbs that show runs and work on their results."""

from __future__ import annotations

from typing import Annotated

import typer

from drivetrain.cli.help import INSPECT
from drivetrain.cli.options import Json, Run, Server


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("list", rich_help_panel=INSPECT)(list_runs)
    for verb in (status, logs, predict, diff, report, checkpoints, export, audit, sync):
        app.command(rich_help_panel=INSPECT)(verb)


def list_runs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many runs.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="Show every run.")] = False,
    json: Json = False,
    server: Server = None,
) -> None:
    """List runs, newest first."""
    from drivetrain.cli.run_verbs import list_runs as show_runs

    show_runs(server, None if every else limit, json)


def status(run: Run, json: Json = False, server: Server = None) -> None:
    """Show the state of a run and the reason for it."""
    from drivetrain.cli.run_verbs import status as show_status

    show_status(server, run, json)


def logs(
    run: Run,
    rank: Annotated[int | None, typer.Option(min=0, help="Show only this rank.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the run has ended.")] = False,
    json: Json = False,
    server: Server = None,
) -> None:
    """Show the output of a run's ranks."""
    from drivetrain.cli.run_verbs import logs as show_logs

    show_logs(server, run, rank, follow, json)


def predict(
    run: Run,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="Text, file, folder, glob, or class to generate an image of.")
    ],
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to generate; by default as in the job's sample section.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of generated text; by default as in the job's sample section.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives another answer.")] = 0,
    to: Annotated[
        str, typer.Option("--to", metavar="FOLDER", help="Folder for images that the model generates.")
    ] = ".",
    json: Json = False,
    server: Server = None,
) -> None:
    """Predict with the newest checkpoint of a run."""
    from drivetrain.cli.run_verbs import predict as ask_model

    ask_model(server, run, inputs, max_tokens, temperature, seed, to, json)


def diff(
    first: Run,
    second: Run,
    picture: Annotated[str | None, typer.Option(metavar="FILE", help="Plot the losses of both runs.")] = None,
    json: Json = False,
    server: Server = None,
) -> None:
    """Compare two runs: settings, code, data, versions and results."""
    from drivetrain.cli.compare import diff_runs

    diff_runs(server, first, second, picture, json)


def report(
    run: Run,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE", help="HTML file; report.html in the run's folder by default.")
    ] = None,
    json: Json = False,
    server: Server = None,
) -> None:
    """Write one self-contained HTML page about a run."""
    from drivetrain.cli.run_verbs import report as write_report

    write_report(server, run, to, json)


def checkpoints(
    run: Run,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare checksums.")] = False,
    upload: Annotated[bool, typer.Option("--upload", help="Upload missing ones to checkpoint.location first.")] = False,
    json: Json = False,
) -> None:
    """List the checkpoints of a run, newest first."""
    from drivetrain.cli.commands import list_checkpoints

    list_checkpoints(run, verify, upload, json)


def export(
    run: Run,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="Folder to write; created if it is missing.")],
    step: Annotated[int | None, typer.Option(min=1, help="Step of the checkpoint; the newest by default.")] = None,
    json: Json = False,
) -> None:
    """Write the trained weights as safetensors or for Hugging Face."""
    from drivetrain.cli.commands import export_model

    export_model(run, to, step, json)


def audit(run: Run, json: Json = False) -> None:
    """Prove that every sample was used exactly once per epoch."""
    from drivetrain.cli.data import audit_run

    audit_run(run, json)


def sync(
    run: Run,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Give up after this time.")] = 600.0,
    json: Json = False,
    server: Server = None,
) -> None:
    """Send to MLflow what it has not received of an ended run."""
    from drivetrain.cli.run_verbs import sync as sync_run

    sync_run(server, run, timeout, json)
