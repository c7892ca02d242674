"""`drivetrain cluster ...`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import typer
import yaml
from drivetrain_pipelines.errors import InputError

from drivetrain.cli.errors import errors
from drivetrain.cli.tables import Column, print_table
from drivetrain.cli.words import plural
from drivetrain.cloud import launcher
from drivetrain.cloud.cluster_file import ClusterFile, NodeGroup
from drivetrain.cloud.notices import check_cloud, wait_for_notice
from drivetrain.cloud.preflight import preflight
from drivetrain.cloud.safety import check_safety
from drivetrain.cluster import nodes
from drivetrain.cluster.connection import connect
from drivetrain.scheduling.rules import Pool

_WITHIN_S = 120.0


def up(file: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """`drivetrain cluster up`."""
    with errors():
        cluster = ClusterFile(Path(file))
        check_safety(cluster)
        least, most = cluster.hourly_price()
        unknown = preflight(cluster)
        if not as_json:
            for each in unknown:
                print(f"not checked: {each}")
            _show_groups(cluster)
            print(f"price: ${least:.2f} per hour when idle, ${most:.2f} per hour at its largest")
        if not dry_run:
            if not yes:
                typer.confirm(f"Start cluster {cluster.name}?", abort=True, err=as_json)
            launcher.up(cluster)
    if as_json:
        groups = [_to_json(group) for group in (cluster.head, *cluster.workers)]
        price = {"idle": least, "largest": most}
        found = {"cluster": cluster.name, "groups": groups, "dollars_per_hour": price, "not_checked": unknown}
        print(json.dumps({**found, "started": not dry_run}))


def down(file: str, yes: bool, as_json: bool) -> None:
    """`drivetrain cluster down`."""
    with errors():
        cluster = ClusterFile(Path(file))
        check_safety(cluster)  # with cache_stopped_nodes, machines would only be stopped
        there = launcher.nodes(cluster)
        if there and not yes:
            text = f"Terminate {plural(len(there), 'machine')} of cluster {cluster.name}?"
            typer.confirm(text, abort=True, err=as_json)
        launcher.down(cluster)
    if as_json:
        print(json.dumps({"cluster": cluster.name, "terminated": [node.id for node in there]}))
    else:
        print(f"cluster {cluster.name} is down: no machine is left")


def status(file: str, as_json: bool) -> None:
    """`drivetrain cluster status`."""
    with errors():
        cluster = ClusterFile(Path(file))
        there = launcher.nodes(cluster)
    if as_json:
        for node in there:
            print(json.dumps(asdict(node)))
        return
    if there:
        rows = [(node.id, node.kind, node.group, node.address, node.status) for node in there]
        print_table((Column("machine"), Column("kind"), Column("group"), Column("address"), Column("status")), rows)
    counts = Counter(node.kind for node in there)
    price = sum(node.price or 0 for node in there)
    heads, workers = plural(counts["head"], "head"), plural(counts["worker"], "worker")
    print(f"{heads}, {workers}: at most ${price:.2f} per hour")


def pools(file: str, as_json: bool) -> None:
    """`drivetrain cluster pools`."""
    with errors():
        cluster = ClusterFile(Path(file))
        found = {
            group.name: Pool(max=group.most, cpus=group.cpus, gpus=group.gpus).model_dump()
            for group in cluster.workers
            if group.most and group.cpus
        }
    print(json.dumps({"pools": found}) if as_json else yaml.safe_dump({"pools": found}, sort_keys=False).rstrip())


def leave(within_s: float | None, on_notice: str | None, address: str | None, as_json: bool) -> None:
    """`drivetrain cluster leave`."""
    with errors():
        if on_notice:
            check_cloud(on_notice)
            if within_s is not None:
                raise InputError("--within", f"{within_s:g}, with --on-notice", "one of them: the notice says when")
        with connect(address or "auto"):  # never a new one
            node, cluster = nodes.this_node()
        if on_notice:
            within_s = wait_for_notice(on_notice)
            print(f"{on_notice} terminates this machine in {within_s:.0f} s", file=sys.stderr, flush=True)
        within_s = _WITHIN_S if within_s is None else within_s
        gone = nodes.leave(node, cluster, within_s, on_notice or "asked to leave")
    if as_json:
        print(json.dumps({"node": node, "unused": gone}))
    else:
        print("this node is no longer in use" if gone else f"this node is still in use after {within_s:.0f} s")
    if not gone:
        raise typer.Exit(1)


def _to_json(group: NodeGroup) -> dict[str, object]:
    """Return a group without the configuration that the cloud reads."""
    return {name: value for name, value in asdict(group).items() if name != "config"}


def _show_groups(cluster: ClusterFile) -> None:
    rows = []
    for group in (cluster.head, *cluster.workers):
        count = str(group.most) if group.least == group.most else f"{group.least} to {group.most}"
        rows.append((group.name, group.machine, count, "spot" if group.spot else "on demand", f"{group.price:.2f}"))
    titles = (Column("group"), Column("machine"), Column("nodes", right=True), Column("price"))
    print_table((*titles, Column("$ per hour and node", right=True)), rows)
