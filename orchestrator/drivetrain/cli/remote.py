"""The verbs that need a server: submit, queue and nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from drivetrain.api.client import Client
from drivetrain.api.runs import RunSummary
from drivetrain.cli.errors import errors, exit_as
from drivetrain.cli.place import show_place
from drivetrain.cli.render import renderer
from drivetrain.cli.tables import FAILED, OK, WAITING, Cell, Column, print_table
from drivetrain.runs.view import RunView

_QUEUE = (
    Column("", right=True),
    Column("run"),
    Column("user", optional=2),
    Column("priority", right=True, optional=1),
    Column("workers", right=True),
    Column("waits for", wrap=True),
)
_NODES = (
    Column("node"),
    Column("address", optional=1),
    Column("state"),
    Column("CPUs", right=True),
    Column("GPUs", right=True),
    Column("ranks", wrap=True),
)


def submit(server: str | None, job: str, overrides: list[str], key: str | None, follow: bool, as_json: bool) -> None:
    """`drivetrain submit`."""
    with _client(server) as client:
        run = client.submit(job, overrides, key)
        if not follow:
            show_place(client, as_json)
            print(json.dumps(run.to_json()) if as_json else run.id)
            return
        with renderer(as_json) as out:
            view = RunView(run.id)
            for view in client.watch(run.id):
                out.show(view)
            summary = RunSummary(run.id, view.facts.reason, view.facts)
            out.summary(summary)
        exit_as(summary.reason)


def queue(server: str | None, as_json: bool) -> None:
    """`drivetrain queue`."""
    with _client(server) as client:
        entries = client.queue()
        show_place(client, as_json)
        if as_json:
            for entry in entries:
                print(json.dumps(entry))
        elif entries:
            rows = [
                (
                    str(number),
                    entry["run"],
                    entry["user"],
                    str(entry["priority"]),
                    str(entry["workers"]),
                    (entry.get("why") or entry["waits_for"], WAITING),
                )
                for number, entry in enumerate(entries, start=1)
            ]
            print_table(_QUEUE, rows)
        else:
            print("no run is queued")


def nodes(server: str | None, as_json: bool) -> None:
    """`drivetrain nodes`."""
    with _client(server) as client:
        found = client.nodes()
        show_place(client, as_json)
        if as_json:
            for node in found:
                print(json.dumps(node))
            return
        rows = [
            (
                node["id"][:12],
                node["address"],
                _state(bool(node["draining"]), bool(node["quarantined_until"])),
                f"{node.get('cpus_used', 0):g}/{node['cpus']:g}",
                f"{node.get('gpus_used', 0):g}/{node['gpus']:g}",
                ", ".join(f"{run}: {ranks}" for run, ranks in node["ranks"].items()),
            )
            for node in found
        ]
        print_table(_NODES, rows)


def _state(draining: bool, quarantined: bool) -> Cell:
    if quarantined:
        return "quarantined", FAILED
    return ("draining", WAITING) if draining else ("usable", OK)


@contextmanager
def _client(server: str | None) -> Iterator[Client]:
    with errors(), Client(server) as client:
        yield client
