"""`drivetrain doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from drivetrain_pipelines.spec import StorageSpec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drivetrain.cli.errors import errors
from drivetrain.cli.tables import show
from drivetrain.cluster.connection import connect
from drivetrain.doctor import cluster, collectives, machine, services
from drivetrain.doctor.finding import Finding, Verdict
from drivetrain.home import Home

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "bold red"}


def examine(
    whole_cluster: bool, address: str | None, locations: list[str], endpoint_url: str | None, as_json: bool
) -> None:
    """Check this machine; with ``whole_cluster`` also every node, and collectives over all of them."""
    with errors():
        home = Home.from_environment()
        access = StorageSpec(endpoint_url=endpoint_url)
        findings = [*machine.examine(home.path, tuple(locations), access), *services.examine(home)]
        if whole_cluster:
            with connect(address):
                findings += cluster.examine(home)
        else:
            findings.append(collectives.on_this_machine())
    _show(findings, as_json)
    if any(finding.verdict is Verdict.FAILED for finding in findings):
        raise typer.Exit(1)


def _show(findings: list[Finding], as_json: bool) -> None:
    if as_json:
        for finding in findings:
            print(json.dumps(asdict(finding)))
        return
    table = Table("node", "check", "", "found", box=None)
    for finding in findings:
        verdict = f"[{_STYLES[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(escape(finding.node), escape(finding.check), verdict, escape(finding.found))
    show(table)
    console = Console(soft_wrap=True)
    for finding in findings:
        if finding.fix:
            console.print(f"{finding.node}: {finding.check}: {finding.fix}", markup=False)
