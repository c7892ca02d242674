"""Parsing of the verbs on data, on shared and cloud clusters, and for development."""

from __future__ import annotations

from typing import Annotated

import typer

from drivetrain.cli.help import CLUSTER, DATA, DEVELOPMENT, SHARE, HelpGroup
from drivetrain.cli.options import Address, Dataset, Endpoint, Job, Json, Set, SharedServer, Yes

data = typer.Typer(cls=HelpGroup, rich_markup_mode=None, help="Prepare, inspect and verify datasets.")
token = typer.Typer(cls=HelpGroup, rich_markup_mode=None, help="Manage the tokens of the server in this home.")
launcher = typer.Typer(cls=HelpGroup, rich_markup_mode=None, help="Start and stop clusters of cloud machines.")


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.add_typer(data, name="data", rich_help_panel=DATA)
    app.command(rich_help_panel=SHARE)(server)
    app.add_typer(token, name="token", rich_help_panel=SHARE)
    app.command(rich_help_panel=SHARE)(queue)
    app.command(rich_help_panel=SHARE)(nodes)
    app.add_typer(launcher, name="cluster", rich_help_panel=CLUSTER)
    app.command(rich_help_panel=CLUSTER)(doctor)
    app.command(rich_help_panel=DEVELOPMENT)(schema)
    app.command(rich_help_panel=DEVELOPMENT)(simulate)


@data.command("prepare")
def data_prepare(job: Job, set_: Set = None, json: Json = False, address: Address = None) -> None:
    """Prepare the dataset of a job without training."""
    from drivetrain.cli.data import prepare_data

    prepare_data(job, set_ or [], json, address)


@data.command("inspect")
def data_inspect(dataset: Dataset, endpoint_url: Endpoint = None, json: Json = False) -> None:
    """Show columns, splits, statistics and skipped records."""
    from drivetrain.cli.data import inspect_data

    inspect_data(dataset, endpoint_url, json)


@data.command("verify")
def data_verify(dataset: Dataset, endpoint_url: Endpoint = None, json: Json = False) -> None:
    """Compare every byte of a dataset with its checksums."""
    from drivetrain.cli.data import verify_data

    verify_data(dataset, endpoint_url, json)


@data.command("head")
def data_head(
    dataset: Dataset,
    endpoint_url: Endpoint = None,
    split: Annotated[str, typer.Option(help="Split to read.")] = "train",
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Number of samples.")] = 3,
    json: Json = False,
) -> None:
    """Show the first samples of a dataset."""
    from drivetrain.cli.data import show_head

    show_head(dataset, endpoint_url, split, rows, json)


@data.command("gc")
def data_gc(yes: Yes = False, json: Json = False) -> None:
    """Remove dataset versions that no run refers to."""
    from drivetrain.cli.data import collect_garbage

    collect_garbage(yes, json)


def server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8900,
    certificate: Annotated[str | None, typer.Option(metavar="FILE", help="PEM certificate for TLS.")] = None,
    key: Annotated[str | None, typer.Option(metavar="FILE", help="PEM key for TLS.")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="A proxy in front does TLS.")] = False,
    address: Address = None,
) -> None:
    """Serve the HTTP API of a shared cluster."""
    from drivetrain.cli.serving import run_server

    run_server(host, port, certificate, key, behind_proxy, address)


@token.command("create")
def token_create(
    user: Annotated[str, typer.Option(help="User that the token belongs to.")],
    role: Annotated[str, typer.Option(help="viewer, user or admin.")] = "user",
    days: Annotated[float | None, typer.Option(help="Days until it expires; never by default.")] = None,
    json: Json = False,
) -> None:
    """Create a token and print it once."""
    from drivetrain.cli.serving import create_token

    create_token(user, role, days, json)


@token.command("list")
def token_list(json: Json = False) -> None:
    """List the tokens, without their secrets."""
    from drivetrain.cli.serving import list_tokens

    list_tokens(json)


@token.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="TOKEN", help="Id of the token.")], json: Json = False
) -> None:
    """Delete a token."""
    from drivetrain.cli.serving import revoke_token

    revoke_token(token_id, json)


def queue(json: Json = False, server: SharedServer = None) -> None:
    """List queued runs of a server, with what they wait for."""
    from drivetrain.cli.remote import queue as show_queue

    show_queue(server, json)


def nodes(json: Json = False, server: SharedServer = None) -> None:
    """List the nodes of a server's cluster, with their ranks."""
    from drivetrain.cli.remote import nodes as show_nodes

    show_nodes(server, json)


_File = Annotated[str, typer.Argument(metavar="FILE", help="Cluster file, as Ray's launcher takes it.")]


@launcher.command("up")
def cluster_up(
    file: _File,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, print the price, and start nothing.")] = False,
    json: Json = False,
) -> None:
    """Check a cluster file, print the price and start the cluster."""
    from drivetrain.cli.cluster import up

    up(file, yes, dry_run, json)


@launcher.command("down")
def cluster_down(file: _File, yes: Yes = False, json: Json = False) -> None:
    """Terminate every machine, and wait until none is left."""
    from drivetrain.cli.cluster import down

    down(file, yes, json)


@launcher.command("status")
def cluster_status(file: _File, json: Json = False) -> None:
    """List the machines that the cloud has, and their price."""
    from drivetrain.cli.cluster import status as show_status

    show_status(file, json)


@launcher.command("pools")
def cluster_pools(file: _File, json: Json = False) -> None:
    """Print the `pools` section of scheduling.yaml for a cluster."""
    from drivetrain.cli.cluster import pools

    pools(file, json)


@launcher.command("leave")
def cluster_leave(
    within: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="Time until the node is gone; 120 by default.")
    ] = None,
    on_notice: Annotated[
        str | None, typer.Option(metavar="CLOUD", help="Wait for the notice of aws, gcp or azure first.")
    ] = None,
    json: Json = False,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster to leave; this machine's by default.")
    ] = None,
) -> None:
    """Drain this node: runs save a checkpoint and leave it."""
    from drivetrain.cli.cluster import leave

    leave(within, on_notice, address, json)


def doctor(
    cluster: Annotated[bool, typer.Option("--cluster", help="Check every node of the Ray cluster.")] = False,
    storage: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Folder or URL to test, in addition to the home.")
    ] = None,
    endpoint_url: Endpoint = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Check this machine or a cluster, and say how to fix problems."""
    from drivetrain.cli.doctor import examine

    examine(cluster, address, storage or [], endpoint_url, json)


def schema(
    to: Annotated[str | None, typer.Option("--to", metavar="FILE", help="Write a file; stdout by default.")] = None,
) -> None:
    """Print the JSON Schema of the job file, for editors.

    An editor with a YAML language server checks and completes a job file whose first line is

    # yaml-language-server: $schema=FILE
    """
    from drivetrain.cli.schema import print_schema

    print_schema(to)


def simulate(
    trace: Annotated[str, typer.Option(metavar="FILE", help="CSV of jobs: job,submitted_s,duration_s,gpus,...")],
    cluster: Annotated[str, typer.Option(metavar="NODESxGPUS", help="Cluster, for example 812x8,1x4.")] = "16x8",
    rules: Annotated[str | None, typer.Option(metavar="FILE", help="Scheduling rules; the defaults without.")] = None,
    picture: Annotated[str | None, typer.Option(metavar="FILE", help="Plot utilisation and completion times.")] = None,
    json: Json = False,
) -> None:
    """Simulate the scheduler on a trace of jobs."""
    from drivetrain.cli.simulate import simulate_trace

    simulate_trace(trace, cluster, rules, picture, json)
