"""Parsing of the verbs that talk to a server, and of those that make one."""

from __future__ import annotations

from typing import Annotated

import typer

Job = Annotated[str, typer.Argument(metavar="JOB", help="job file, folder with a job.yaml, or recipe name")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="run id, or the beginning of one")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override, as section.key=value")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object per line, for machines")]
Server = Annotated[str | None, typer.Option(envvar="DRIVETRAIN_SERVER", metavar="URL", help="of a Drivetrain server")]

launcher = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Clusters of cloud machines.")
token = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tokens of the server in this home.")


def add_cluster_verbs(app: typer.Typer) -> None:
    """Register them."""
    for verb in (submit, status, logs, wait, cancel, retry, queue, nodes, server):
        app.command()(verb)
    app.add_typer(token, name="token")
    app.add_typer(launcher, name="cluster")


def submit(
    job: Job,
    set_: Set = None,
    idempotency_key: Annotated[str | None, typer.Option(metavar="KEY", help="the same one twice makes one run")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="and follow it, as `drivetrain run` does")] = False,
    json: Json = False,
    server: Server = None,
) -> None:
    """Send a job to a server, which queues and runs it."""
    from drivetrain.cli import remote

    remote.submit(server, job, set_ or [], idempotency_key, follow, json)


def status(run: Run, json: Json = False, server: Server = None) -> None:
    """Where a run is, and why."""
    from drivetrain.cli import remote

    remote.status(server, run, json)


def logs(
    run: Run,
    rank: Annotated[int | None, typer.Option(min=0, help="of this rank alone")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the run has ended")] = False,
    server: Server = None,
) -> None:
    """What the ranks of a run have printed."""
    from drivetrain.cli import remote

    remote.logs(server, run, rank, follow)


def wait(
    run: Run,
    timeout: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="give up after so long")] = None,
    json: Json = False,
    server: Server = None,
) -> None:
    """Wait until a run has ended; the exit code says how."""
    from drivetrain.cli import remote

    remote.wait(server, run, timeout, json)


def cancel(run: Run, json: Json = False, server: Server = None) -> None:
    """Have a run save and end."""
    from drivetrain.cli import remote

    remote.cancel(server, run, json)


def retry(run: Run, json: Json = False, server: Server = None) -> None:
    """Begin a new run of the same job."""
    from drivetrain.cli import remote

    remote.retry(server, run, json)


def queue(json: Json = False, server: Server = None) -> None:
    """Who waits, the next first, and why."""
    from drivetrain.cli import remote

    remote.queue(server, json)


def nodes(json: Json = False, server: Server = None) -> None:
    """The cluster's nodes, and the ranks on them."""
    from drivetrain.cli import remote

    remote.nodes(server, json)


def server(
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8900,
    certificate: Annotated[str | None, typer.Option(metavar="FILE", help="PEM, for TLS")] = None,
    key: Annotated[str | None, typer.Option(metavar="FILE", help="PEM, for TLS")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="a proxy in front does TLS")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; this machine's, or a new one")] = None,
) -> None:
    """Serve the HTTP API of a shared cluster."""
    from drivetrain.cli.serving import run_server

    run_server(host, port, certificate, key, behind_proxy, address)


@token.command("create")
def token_create(
    user: Annotated[str, typer.Option(help="whose")],
    role: Annotated[str, typer.Option(help="viewer, user or admin")] = "user",
    days: Annotated[float | None, typer.Option(help="until it expires; never by default")] = None,
    json: Json = False,
) -> None:
    """Make a token, and show it this once."""
    from drivetrain.cli.serving import create_token

    create_token(user, role, days, json)


@token.command("list")
def token_list(json: Json = False) -> None:
    """List tokens; the secrets are not known here."""
    from drivetrain.cli.serving import list_tokens

    list_tokens(json)


@token.command("revoke")
def token_revoke(token_id: Annotated[str, typer.Argument(metavar="TOKEN", help="its id")]) -> None:
    """Make a token worthless."""
    from drivetrain.cli.serving import revoke_token

    revoke_token(token_id)


_File = Annotated[str, typer.Argument(metavar="FILE", help="cluster file, as Ray's launcher takes it")]
_Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


@launcher.command("up")
def cluster_up(
    file: _File,
    yes: _Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check, tell the price, and start nothing")] = False,
) -> None:
    """Check credentials, quotas and safety, tell the price, ask, and start the cluster."""
    from drivetrain.cli.cluster import up

    up(file, yes, dry_run)


@launcher.command("down")
def cluster_down(file: _File, yes: _Yes = False) -> None:
    """End every machine of the cluster; done when the cloud has none of them left."""
    from drivetrain.cli.cluster import down

    down(file, yes)


@launcher.command("status")
def cluster_status(file: _File, json: Json = False) -> None:
    """The cluster's machines, by the cloud's own books, and what they cost."""
    from drivetrain.cli.cluster import status as show_status

    show_status(file, json)


@launcher.command("pools")
def cluster_pools(file: _File) -> None:
    """Print the `pools` of scheduling.yaml that a cluster file amounts to."""
    from drivetrain.cli.cluster import pools

    pools(file)


@launcher.command("leave")
def cluster_leave(
    within: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="until this node is gone; 120 if nothing is said")
    ] = None,
    on_notice: Annotated[
        str | None, typer.Option(metavar="CLOUD", help="when aws, gcp or azure says that it takes this machine back")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster that it leaves; by default this machine's")] = None,
) -> None:
    """Have runs save and leave this node for good, and return when they have."""
    from drivetrain.cli.cluster import leave

    leave(within, on_notice, address)
