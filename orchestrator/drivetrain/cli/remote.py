"""The verbs that talk to a server. Exit codes: 0 done, 1 failed, 2 wrong input, 124 not yet ended, 130 cancelled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from drivetrain_pipelines.storage.checksums import JsonObject

from drivetrain.accounting.summary import describe_cost, describe_time
from drivetrain.api.client import Client
from drivetrain.api.runs import RunSummary
from drivetrain.cli.errors import errors
from drivetrain.cli.paging import first
from drivetrain.cli.render import renderer
from drivetrain.runs.view import RunView


def submit(server: str | None, job: str, overrides: list[str], key: str | None, follow: bool, as_json: bool) -> None:
    """`drivetrain submit`."""
    with _client(server) as client:
        run = client.submit(job, overrides, key)
        if not follow:
            print(json.dumps(run) if as_json else run["run_id"])
            return
        with renderer(as_json) as out:
            view = RunView(run["run_id"])
            for told in client.watch(run["run_id"]):
                view = RunView.from_json(told)
                out.show(view)
            summary = RunSummary(run["run_id"], view.facts.reason, view.facts)
            out.summary(summary)
        _exit(summary.reason)


def status(server: str | None, run: str, as_json: bool) -> None:
    """`drivetrain status`."""
    with _client(server) as client:
        found, account = client.status(run), client.account(run)
        if as_json:
            print(json.dumps({**found, "account": account}))
            return
        view, progress = found["view"], found["progress"]
        rows = [
            ("user", found["user"]),
            ("phase", found["phase"] + (f": {view['waiting']}" if found["phase"] in ("queued", "ready") else "")),
            ("step", f"{view['step'] or progress['step']} of {view['steps']}" if view["steps"] else ""),
            ("checkpoint", f"step {progress['committed_step']}" if progress["committed_step"] else ""),
            ("loss", "" if view["loss"] is None else f"{view['loss']:.4f}"),
            ("eval loss", "" if view["eval_loss"] is None else f"{view['eval_loss']:.4f}"),
            ("restarts", str(progress["restarts"]) if progress["restarts"] else ""),
            ("last trouble", view["problem"]),
            ("time", describe_time(account)),
            ("cost", describe_cost(account)),
            ("ended", " ".join(filter(None, (found["reason"], found["facts"].get("detail", ""))))),
        ]
        print(found["run_id"])
        for title, value in rows:
            if value:
                print(f"  {title:13} {value}")
        print("  history")
        for entry in found["history"]:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["time"]))
            print(f"    {when}  {entry['phase']:10} {entry['why']}")


def logs(server: str | None, run: str, rank: int | None, follow: bool) -> None:
    """`drivetrain logs`."""
    with _client(server) as client:
        for line in client.logs(run, rank, follow):
            print(line, flush=True)


def wait(server: str | None, run: str, timeout_s: float | None, as_json: bool) -> None:
    """`drivetrain wait`."""
    with _client(server) as client:
        try:
            found = client.wait(run, timeout_s)
        except TimeoutError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(124) from None
        _print(found, as_json)
        _exit(found["reason"])


def cancel(server: str | None, run: str, as_json: bool) -> None:
    """`drivetrain cancel`."""
    with _client(server) as client:
        _print(client.cancel(run), as_json)


def retry(server: str | None, run: str, as_json: bool) -> None:
    """`drivetrain retry`."""
    with _client(server) as client:
        _print(client.retry(run), as_json)


def resume(server: str | None, run: str, as_json: bool) -> None:
    """`drivetrain resume --server`."""
    with _client(server) as client:
        _print(client.resume(run), as_json)


def list_runs(server: str | None, limit: int | None, as_json: bool) -> None:
    """`drivetrain list --server`."""
    with _client(server) as client:
        for run in first(client.all_runs(), limit):
            _print(run, as_json)


def queue(server: str | None, as_json: bool) -> None:
    """`drivetrain queue`."""
    with _client(server) as client:
        for number, entry in enumerate(client.queue(), start=1):
            if as_json:
                print(json.dumps(entry))
                continue
            workers = f"{entry['workers']} workers"
            why = entry.get("why") or f"waits for {entry['waits_for']}"
            print(
                f"{number:>3}  {entry['run']:32} {entry['user']:12} priority {entry['priority']:<4} {workers:12} {why}"
            )


def nodes(server: str | None, as_json: bool) -> None:
    """`drivetrain nodes`."""
    with _client(server) as client:
        for node in client.nodes():
            if as_json:
                print(json.dumps(node))
                continue
            cpus = f"{node.get('cpus_used', 0):g} of {node['cpus']:g} CPUs"
            gpus = f"{node.get('gpus_used', 0):g} of {node['gpus']:g} GPUs"
            held = ", ".join(f"{run}: {ranks}" for run, ranks in node["ranks"].items())
            state = "draining " * node["draining"] + "in quarantine " * bool(node["quarantined_until"])
            print(f"{node['id'][:12]}  {node['address']:15}  {cpus:16} {gpus:16} {state}{held}".rstrip())


@contextmanager
def _client(server: str | None) -> Iterator[Client]:
    with errors(), Client(server) as client:
        yield client


def _print(run: JsonObject, as_json: bool) -> None:
    line = "{run_id:40} {user:12} {phase:10} {step:>7} {reason}".format(**run, step=run["progress"]["step"])
    print(json.dumps(run) if as_json else line.rstrip())


def _exit(reason: str) -> None:
    if reason != "completed":
        raise typer.Exit(130 if reason == "cancelled" else 1)
