"""`drivetrain cluster ...`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import typer
import yaml
from drivetrain_pipelines.errors import InputError
from rich.table import Table

from drivetrain.api.session import connect
from drivetrain.cli.errors import errors
from drivetrain.cli.tables import show
from drivetrain.cloud import launcher
from drivetrain.cloud.cluster_file import ClusterFile
from drivetrain.cloud.notices import check_cloud, wait_for_notice
from drivetrain.cloud.preflight import preflight
from drivetrain.cloud.safety import check_safety
from drivetrain.cluster import nodes
from drivetrain.scheduling.rules import Pool

_WITHIN_S = 120.0


def up(file: str, yes: bool, dry_run: bool) -> None:
    """`drivetrain cluster up`."""
    with errors():
        cluster = ClusterFile(Path(file))
        check_safety(cluster)
        least, most = cluster.hourly_price()
        for unknown in preflight(cluster):
            print(f"could not be checked: {unknown}")
        _show_groups(cluster)
        print(f"${least:.2f} an hour while idle, ${most:.2f} at its largest")
        if dry_run:
            return
        if not yes:
            typer.confirm(f"Start cluster {cluster.name}?", abort=True)
        launcher.up(cluster)


def down(file: str, yes: bool) -> None:
    """`drivetrain cluster down`."""
    with errors():
        cluster = ClusterFile(Path(file))
        check_safety(cluster)  # with cache_stopped_nodes, machines would only be stopped
        there = launcher.nodes(cluster)
        if there and not yes:
            typer.confirm(f"End all {len(there)} machines of cluster {cluster.name}?", abort=True)
        launcher.down(cluster)
        print(f"nothing is left of cluster {cluster.name}")


def status(file: str, as_json: bool) -> None:
    """`drivetrain cluster status`."""
    with errors():
        cluster = ClusterFile(Path(file))
        there = launcher.nodes(cluster)
    if as_json:
        for node in there:
            print(json.dumps(asdict(node)))
        return
    table = Table("machine", "kind", "group", "address", "status", box=None)
    for node in there:
        table.add_row(node.id, node.kind, node.group, node.address, node.status)
    show(table)
    counts = Counter(node.kind for node in there)
    price = sum(node.price or 0 for node in there)
    print(f"{counts['head']} head, {counts['worker']} workers: ${price:.2f} an hour at the most")


def pools(file: str) -> None:
    """`drivetrain cluster pools`."""
    with errors():
        cluster = ClusterFile(Path(file))
        found = {
            group.name: Pool(max=group.most, cpus=group.cpus, gpus=group.gpus).model_dump()
            for group in cluster.workers
            if group.most and group.cpus
        }
    print(yaml.safe_dump({"pools": found}, sort_keys=False), end="")


def leave(within_s: float | None, on_notice: str | None, address: str | None) -> None:
    """`drivetrain cluster leave`."""
    with errors():
        if on_notice:
            check_cloud(on_notice)
            if within_s is not None:
                raise InputError(
                    "--within", f"{within_s:g}, beside --on-notice", "one of them: the notice tells the time"
                )
        with connect(address or "auto"):  # never a new one
            node, cluster = nodes.this_node()
        if on_notice:
            within_s = wait_for_notice(on_notice)
            print(f"{on_notice} takes this machine back in {within_s:.0f} s", flush=True)
        within_s = _WITHIN_S if within_s is None else within_s
        gone = nodes.leave(node, cluster, within_s, on_notice or "asked to leave")
    print("nobody uses this node any more" if gone else f"still in use after {within_s:.0f} s")
    if not gone:
        raise typer.Exit(1)


def _show_groups(cluster: ClusterFile) -> None:
    table = Table("group", "machine", "nodes", "", "$ an hour each", box=None)
    for group in (cluster.head, *cluster.workers):
        count = str(group.most) if group.least == group.most else f"{group.least} to {group.most}"
        table.add_row(group.name, group.machine, count, "spot" if group.spot else "on demand", f"{group.price:.2f}")
    show(table)
