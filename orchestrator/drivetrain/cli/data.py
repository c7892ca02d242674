"""`drivetrain data ...` and `drivetrain audit`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from drivetrain_pipelines.stream.dataset import Dataset
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from drivetrain.api import datasets
from drivetrain.api.local import LocalRuns
from drivetrain.cli.errors import FAILED, errors
from drivetrain.cli.place import ONLY_LOCAL
from drivetrain.cli.render import renderer_console
from drivetrain.cli.tables import Column, print_table
from drivetrain.cli.words import plural


def prepare_data(job: str, overrides: list[str], as_json: bool, address: str | None) -> None:
    """`drivetrain data prepare`."""
    with errors(), renderer_console() as console:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        # In a pipe the one line is the result; without this, an empty one comes before it.
        quiet = as_json or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
            task = progress.add_task("")
            prepared = datasets.prepare_data(
                job,
                overrides,
                address,
                lambda done, total, what: progress.update(task, completed=done, total=total or None, description=what),
            )
        if as_json:
            facts = {"location": prepared.folder.location, "made": prepared.made, "notes": prepared.notes}
            lines = [json.dumps(facts)]
        else:
            made = "made" if prepared.made else "found, nothing to prepare"
            lines = [f"{prepared.folder.location} ({made})", *prepared.notes]
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def inspect_data(where: str, endpoint_url: str | None, as_json: bool) -> None:
    """`drivetrain data inspect`."""
    with errors():
        manifest = datasets.find_dataset(where, endpoint_url).manifest
        splits = {
            split: {
                "samples": manifest.rows(split),
                "shards": len(shards),
                "bytes": sum(shard.bytes for shard in shards),
                "streams": len({shard.stream for shard in shards}),
            }
            for split, shards in manifest.splits.items()
        }
        columns = {field.name: str(field.type) for field in manifest.schema}
        facts = {"name": manifest.name, "version": manifest.version, "columns": columns, "splits": splits}
        facts |= {"statistics": manifest.statistics, "classes": manifest.classes, "skipped": manifest.skipped}
        facts["notes"] = manifest.notes
        if as_json:
            print(json.dumps(facts))
            return
        print(f"{manifest.name}/{manifest.version}\n")
        print_table((Column("column"), Column("type", wrap=True)), columns.items())
        print()
        numbers = [Column(name, right=True) for name in ("samples", "shards", "bytes", "streams")]
        rows = [(split, *(f"{value:,}" for value in figures.values())) for split, figures in splits.items()]
        print_table((Column("split"), *numbers), rows)
        if manifest.statistics:
            print()
            values = [(name, f"{value:,.6g}") for name, value in manifest.statistics.items()]
            print_table((Column("statistic"), Column("value", right=True)), values)
        if manifest.skipped:
            print()
            print_table((Column("skipped records", wrap=True),), [(str(place),) for place in manifest.skipped])
        if manifest.notes:
            print()
            print("\n".join(manifest.notes))


def verify_data(where: str, endpoint_url: str | None, as_json: bool) -> None:
    """`drivetrain data verify`."""
    with errors():
        dataset = datasets.find_dataset(where, endpoint_url)
        problems = list(datasets.verify(dataset))
        if as_json:
            print(json.dumps({"dataset": _name(dataset), "problems": problems}))
        else:
            for problem in problems:
                print(problem)
        if problems:
            raise typer.Exit(FAILED)
        if not as_json:
            print(f"{_name(dataset)}: verified, every checksum matches")


def show_head(where: str, endpoint_url: str | None, split: str, rows: int, as_json: bool) -> None:
    """`drivetrain data head`."""
    with errors():
        samples = list(datasets.head(datasets.find_dataset(where, endpoint_url), split, rows))
        if as_json:
            for sample in samples:
                print(json.dumps(sample, ensure_ascii=False))
        elif samples:
            columns = [Column(name, wrap=True) for name in samples[0]]
            print_table(columns, [[_shown(value) for value in sample.values()] for sample in samples])
        else:
            print(f"the split {split} is empty")


def collect_garbage(yes: bool, as_json: bool) -> None:
    """`drivetrain data gc`; with ``--json`` nothing is asked, and without ``--yes`` nothing is removed."""
    with errors():
        folders = datasets.garbage()
        if as_json:
            datasets.remove(folders if yes else ())
            for folder in folders:
                print(json.dumps({"folder": str(folder), "removed": not folder.exists()}))
            return
        if not folders:
            print("nothing to remove: every dataset version belongs to a run")
            return
        print_table((Column("dataset version", wrap=True),), [(str(folder),) for folder in folders])
        if yes or typer.confirm(f"Remove {plural(len(folders), 'folder')}?"):
            datasets.remove(folders)
            kept = [folder for folder in folders if folder.exists()]
            print(f"removed {plural(len(folders) - len(kept), 'folder')}")


def audit_run(run_id: str, as_json: bool) -> None:
    """`drivetrain audit`."""
    with errors():
        with LocalRuns() as local:
            run_id = local.record(run_id, ONLY_LOCAL).id
        found = datasets.audit_run(run_id)
        if as_json:
            print(json.dumps(asdict(found)))
        else:
            epochs = ", ".join(f"{epochs:.3f}" for epochs in found.epochs)
            worlds = ", ".join(f"{size} from step {step}" for step, size in found.worlds)
            steps, samples = plural(found.steps, "step"), plural(found.samples, "sample")
            print(f"{steps}, {samples}, {epochs} epochs; world size {worlds}")
            for skip in found.skips:
                print(f"skipped: {skip}")
            print("\n".join(found.problems) or "every sample was used exactly once per epoch")
        if found.problems:
            raise typer.Exit(FAILED)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name(dataset: Dataset) -> str:
    return f"{dataset.manifest.name}/{dataset.manifest.version}"
