"""Parsing of the verbs that start, change and check runs."""

from __future__ import annotations

from typing import Annotated

import typer

from drivetrain.cli.help import RUN
from drivetrain.cli.options import Address, Job, Json, Recipe, Run, Server, Set, SharedServer


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    for verb in (run, submit, resume, retry, cancel, wait, validate, plan):
        app.command(rich_help_panel=RUN)(verb)
    app.command("scaling-curve", rich_help_panel=RUN)(scaling_curve)
    app.command("recipes", rich_help_panel=RUN)(list_recipes)
    app.command(rich_help_panel=RUN)(init)


def run(job: Job, set_: Set = None, json: Json = False, address: Address = None) -> None:
    """Run a job on this machine, or resume it, and follow it."""
    from drivetrain.cli.jobs import run_job

    run_job(job, set_ or [], json, address)


def submit(
    job: Job,
    set_: Set = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="The same job with the same key makes one run; another job with it is refused."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the run until it has ended.")] = False,
    json: Json = False,
    server: SharedServer = None,
) -> None:
    """Send a job to a server, which queues and runs it."""
    from drivetrain.cli.remote import submit as send

    send(server, job, set_ or [], idempotency_key, follow, json)


def resume(run: Run, json: Json = False, address: Address = None, server: Server = None) -> None:
    """Resume an interrupted, cancelled or failed run."""
    from drivetrain.cli.run_verbs import resume as resume_run

    resume_run(server, run, json, address)


def retry(run: Run, json: Json = False, address: Address = None, server: Server = None) -> None:
    """Start a new run of the same job."""
    from drivetrain.cli.run_verbs import retry as retry_run

    retry_run(server, run, json, address)


def cancel(run: Run, json: Json = False, address: Address = None, server: Server = None) -> None:
    """Ask a run to save a checkpoint and end."""
    from drivetrain.cli.run_verbs import cancel as cancel_run

    cancel_run(server, run, json, address)


def wait(
    run: Run,
    timeout: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Give up after this time.")] = None,
    json: Json = False,
    server: Server = None,
) -> None:
    """Wait until a run has ended; the exit code says how."""
    from drivetrain.cli.run_verbs import wait as wait_for

    wait_for(server, run, timeout, json)


def validate(
    job: Job,
    try_: Annotated[
        bool,
        typer.Option("--try", help="Also read the first records, build the model, make a step and an evaluation."),
    ] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Check a job file and start no run."""
    from drivetrain.cli.jobs import validate_job

    validate_job(job, set_ or [], try_, json)


def plan(
    job: Job,
    gpu: Annotated[
        str | None, typer.Option(metavar="KIND", help="GPU: h100, h200, a100, l40s, ...; CPUs by default.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of each node; by default one for each worker of the job.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    network_gbps: Annotated[
        float | None, typer.Option(min=0.001, help="Bandwidth of each node's network, in Gb/s; 400 by default.")
    ] = None,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Plan without the data, which may not be there yet.")
    ] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Estimate memory, time, energy and cost of a job."""
    from drivetrain.cli.plan import plan as show_plan

    show_plan(job, set_ or [], gpu, gpus, nodes, network_gbps, not no_data, json)


def scaling_curve(
    job: Job,
    fractions: Annotated[str, typer.Option(help="Shares of the training data.")] = "0.125,0.25,0.5,1",
    picture: Annotated[str | None, typer.Option(metavar="FILE", help="Plot; JOB-scaling.png by default.")] = None,
    set_: Set = None,
    json: Json = False,
    address: Address = None,
) -> None:
    """Train on shares of the data and fit a power law."""
    from drivetrain.cli.recipes import scaling_curve as measure

    measure(job, set_ or [], fractions, picture, json, address)


def list_recipes(json: Json = False) -> None:
    """List the bundled recipes."""
    from drivetrain.cli.recipes import list_recipes as show_recipes

    show_recipes(json)


def init(
    recipe: Recipe,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
    json: Json = False,
) -> None:
    """Copy a recipe into a folder, to change it."""
    from drivetrain.cli.recipes import init as copy

    copy(recipe, folder, json)
