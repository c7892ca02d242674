"""`drivetrain data ...` and `drivetrain audit`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from drivetrain_pipelines.stream.dataset import Dataset
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from drivetrain.api import datasets
from drivetrain.cli.errors import errors
from drivetrain.cli.render import renderer_console


def prepare_data(job: str, overrides: list[str], address: str | None) -> None:
    """`drivetrain data prepare`."""
    with errors(), renderer_console() as console:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        # In a pipe the one line is the result; without this, an empty one comes before it.
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("")
            prepared = datasets.prepare_data(
                job,
                overrides,
                address,
                lambda done, total, what: progress.update(task, completed=done, total=total or None, description=what),
            )
        made = "made" if prepared.made else "found, nothing to prepare"
        console.print(f"{prepared.folder.location} ({made})", soft_wrap=True, highlight=False)


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
        if as_json:
            print(json.dumps(facts))
            return
        print(f"{manifest.name}/{manifest.version}")
        for name, kind in columns.items():
            print(f"  column {name:<12} {kind}")
        for split, figures in splits.items():
            print(f"  split {split:<13} " + ", ".join(f"{value:,} {what}" for what, value in figures.items()))
        for name, value in manifest.statistics.items():
            print(f"  {name:<19} {value:,.6g}")
        for place in manifest.skipped:
            print(f"  skipped             {place}")


def verify_data(where: str, endpoint_url: str | None) -> None:
    """`drivetrain data verify`."""
    with errors():
        dataset = datasets.find_dataset(where, endpoint_url)
        problems = list(datasets.verify(dataset))
        for problem in problems:
            print(problem)
        if problems:
            raise typer.Exit(1)
        print(f"{_name(dataset)}: every byte is what was written")


def show_head(where: str, endpoint_url: str | None, split: str, rows: int) -> None:
    """`drivetrain data head`."""
    with errors():
        for sample in datasets.head(datasets.find_dataset(where, endpoint_url), split, rows):
            print(json.dumps(sample, ensure_ascii=False))


def collect_garbage(yes: bool) -> None:
    """`drivetrain data gc`."""
    with errors():
        folders = datasets.garbage()
        for folder in folders:
            print(folder)
        if not folders:
            print("nothing to remove: every dataset version belongs to a run")
        elif yes or typer.confirm(f"remove these {len(folders)} folders?"):
            datasets.remove(folders)


def audit_run(run_id: str, as_json: bool) -> None:
    """`drivetrain audit`."""
    with errors():
        found = datasets.audit_run(run_id)
        if as_json:
            print(json.dumps(asdict(found)))
        else:
            epochs = ", ".join(f"{epochs:.3f}" for epochs in found.epochs)
            worlds = ", ".join(f"{size} from step {step}" for step, size in found.worlds)
            print(f"{found.steps} steps, {found.samples:,} samples, {epochs} epochs; world size {worlds}")
            for skip in found.skips:
                print(f"passed over: {skip}")
            print("\n".join(found.problems) or "every sample was used exactly once per epoch")
        if found.problems:
            raise typer.Exit(1)


def _name(dataset: Dataset) -> str:
    return f"{dataset.manifest.name}/{dataset.manifest.version}"
