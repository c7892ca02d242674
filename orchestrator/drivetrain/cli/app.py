"""Parsing only; what a verb needs is imported when it runs, so that ``--help`` comes in a blink."""

from __future__ import annotations

from typing import Annotated

import typer

from drivetrain.cli.server_verbs import Json as _Json
from drivetrain.cli.server_verbs import Run as _Run
from drivetrain.cli.server_verbs import Server as _Server
from drivetrain.cli.server_verbs import Set as _Set
from drivetrain.cli.server_verbs import add_cluster_verbs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distributed training whose result does not depend on what happens to the machines.",
)

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare, check and look into datasets.")
app.add_typer(data, name="data")

_Job = Annotated[str, typer.Argument(metavar="JOB", help="job file, folder with a job.yaml, or recipe name")]
_Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="name, NAME/VERSION, folder or URL")]
_Endpoint = Annotated[str | None, typer.Option(help="of an S3 server other than AWS, for a URL")]
_Address = Annotated[str | None, typer.Option(help="Ray cluster to join; by default this machine's, or a new one")]


@app.command()
def run(job: _Job, set_: _Set = None, json: _Json = False, address: _Address = None) -> None:
    """Run a job and follow it; an interrupted run of the very same job goes on."""
    from drivetrain.cli.commands import run_job

    run_job(job, set_ or [], json, address)


@app.command()
def resume(run: _Run, json: _Json = False, address: _Address = None, server: _Server = None) -> None:
    """Go on with a run that was interrupted, cancelled or has failed; with --server, on the cluster."""
    if server:
        from drivetrain.cli.remote import resume as resume_there

        resume_there(server, run, json)
        return
    from drivetrain.cli.commands import resume_run

    resume_run(run, json, address)


@app.command()
def validate(job: _Job, set_: _Set = None) -> None:
    """Check a job file and do nothing else."""
    from drivetrain.cli.commands import validate_job

    validate_job(job, set_ or [])


@app.command()
def plan(
    job: _Job,
    gpu: Annotated[str | None, typer.Option(metavar="KIND", help="h100, h200, a100, l40s, ...; else CPUs")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="of each node; else as many as the job has workers")] = None,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    set_: _Set = None,
    json: _Json = False,
) -> None:
    """Tell what a run would take before it begins: memory by ZeRO stage, time, data, checkpoints, energy, cost."""
    from drivetrain.cli.plan import plan as show_plan

    show_plan(job, set_ or [], gpu, gpus, nodes, json)


@app.command()
def predict(
    run: _Run,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="text, file, or class to make an image of")],
    max_tokens: Annotated[int | None, typer.Option(min=1, help="of text; as in the job's sample by default")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="of text; as in the job's sample")] = None,
    seed: Annotated[int, typer.Option(help="another one, another answer")] = 0,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="for images that the model makes")] = ".",
    json: _Json = False,
) -> None:
    """Ask the newest checkpoint of a run about texts, images, recordings or tables."""
    from drivetrain.cli.commands import predict as ask_model

    ask_model(run, inputs, max_tokens, temperature, seed, to, json)


@app.command()
def checkpoints(
    run: _Run,
    verify: Annotated[bool, typer.Option("--verify", help="read every byte and compare it with its checksum")] = False,
    upload: Annotated[
        bool, typer.Option("--upload", help="first bring storage (checkpoint.location) up to date")
    ] = False,
    json: _Json = False,
) -> None:
    """List the checkpoints of a run, newest first."""
    from drivetrain.cli.commands import list_checkpoints

    list_checkpoints(run, verify, upload, json)


@app.command()
def export(
    run: _Run,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="folder to write into; made if it is not there")],
    step: Annotated[
        int | None, typer.Option(min=1, help="of an older checkpoint; the newest valid one otherwise")
    ] = None,
) -> None:
    """Write the trained weights as safetensors (and a Hugging Face folder, where the model is one)."""
    from drivetrain.cli.commands import export_model

    export_model(run, to, step)


@app.command()
def diff(
    first: _Run,
    second: _Run,
    picture: Annotated[str | None, typer.Option(metavar="FILE", help="draw both losses over each other")] = None,
    json: _Json = False,
) -> None:
    """Tell what differs between two runs: settings, code, data, versions, world sizes, and what came of it."""
    from drivetrain.cli.compare import diff_runs

    diff_runs(first, second, picture, json)


@app.command()
def report(
    run: _Run,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE", help="report.html in the run's folder by default")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run."""
    from drivetrain.cli.commands import report_run

    report_run(run, to)


@app.command()
def sync(
    run: _Run,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="give up after so long")] = 600.0,
) -> None:
    """Ship what MLflow has not got yet of a run that has ended."""
    from drivetrain.cli.commands import sync_run

    sync_run(run, timeout)


@app.command()
def audit(run: _Run, json: _Json = False) -> None:
    """Prove from a run's ledger that every sample was used exactly once per epoch."""
    from drivetrain.cli.data import audit_run

    audit_run(run, json)


@data.command("prepare")
def data_prepare(job: _Job, set_: _Set = None, address: _Address = None) -> None:
    """Make the dataset version that a job needs, without training."""
    from drivetrain.cli.data import prepare_data

    prepare_data(job, set_ or [], address)


@data.command("inspect")
def data_inspect(dataset: _Dataset, endpoint_url: _Endpoint = None, json: _Json = False) -> None:
    """Columns, splits, figures and skipped records of a dataset."""
    from drivetrain.cli.data import inspect_data

    inspect_data(dataset, endpoint_url, json)


@data.command("verify")
def data_verify(dataset: _Dataset, endpoint_url: _Endpoint = None) -> None:
    """Compare every byte of a dataset with its checksums."""
    from drivetrain.cli.data import verify_data

    verify_data(dataset, endpoint_url)


@data.command("head")
def data_head(
    dataset: _Dataset,
    endpoint_url: _Endpoint = None,
    split: Annotated[str, typer.Option()] = "train",
    rows: Annotated[int, typer.Option("--rows", "-n", min=1)] = 3,
) -> None:
    """Show the first samples."""
    from drivetrain.cli.data import show_head

    show_head(dataset, endpoint_url, split, rows)


@data.command("gc")
def data_gc(yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False) -> None:
    """Remove dataset versions that no run refers to."""
    from drivetrain.cli.data import collect_garbage

    collect_garbage(yes)


@app.command()
def simulate(
    trace: Annotated[str, typer.Option(metavar="FILE", help="CSV of jobs: job,submitted_s,duration_s,gpus,...")],
    cluster: Annotated[str, typer.Option(metavar="NODESxGPUS", help="for example 812x8,1x4")] = "16x8",
    rules: Annotated[str | None, typer.Option(metavar="FILE", help="scheduling rules; the defaults otherwise")] = None,
    picture: Annotated[str | None, typer.Option(metavar="FILE", help="draw utilisation and completion times")] = None,
    json: _Json = False,
) -> None:
    """Run a trace of jobs through the scheduler on a virtual clock, beside two baselines."""
    from drivetrain.cli.simulate import simulate_trace

    simulate_trace(trace, cluster, rules, picture, json)


@app.command()
def doctor(
    cluster: Annotated[bool, typer.Option("--cluster", help="every node of the Ray cluster, and all together")] = False,
    storage: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="folder or URL to write to and read from, besides the home")
    ] = None,
    endpoint_url: _Endpoint = None,
    address: _Address = None,
    json: _Json = False,
) -> None:
    """Look for what is wrong with this machine or a cluster, and tell what to do about it."""
    from drivetrain.cli.doctor import examine

    examine(cluster, address, storage or [], endpoint_url, json)


@app.command("recipes")
def list_recipes(json: _Json = False) -> None:
    """List the jobs that come with Drivetrain."""
    from drivetrain.cli.recipes import list_recipes as show_recipes

    show_recipes(json)


@app.command()
def init(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="see `drivetrain recipes`")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="a new or an empty folder")],
) -> None:
    """Copy a recipe, to change it."""
    from drivetrain.cli.recipes import init as copy

    copy(recipe, folder)


@app.command("scaling-curve")
def scaling_curve(
    job: _Job,
    fractions: Annotated[str, typer.Option(help="shares of the training data")] = "0.125,0.25,0.5,1",
    picture: Annotated[str | None, typer.Option(metavar="FILE", help="JOB-scaling.png by default")] = None,
    set_: _Set = None,
    json: _Json = False,
    address: _Address = None,
) -> None:
    """Train on shares of the data, and fit and draw the power law of the loss."""
    from drivetrain.cli.recipes import scaling_curve as measure

    measure(job, set_ or [], fractions, picture, json, address)


@app.command("list")
def list_runs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="show at most so many")] = 50,
    every: Annotated[bool, typer.Option("--all", help="show every run")] = False,
    json: _Json = False,
    server: _Server = None,
) -> None:
    """List the runs of this home, or of a server, newest first."""
    most = None if every else limit
    if server:
        from drivetrain.cli.remote import list_runs as list_there

        list_there(server, most, json)
        return
    from drivetrain.cli.commands import list_runs as list_here

    list_here(most, json)


add_cluster_verbs(app)
