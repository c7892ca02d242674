"""Arguments and options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from drivetrain.cli.completion import job_keys, jobs, recipe_names, run_ids

Job = Annotated[
    str, typer.Argument(metavar="JOB", help="Job file, folder with a job.yaml, or recipe.", autocompletion=jobs)
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Run id, or a unique prefix.", autocompletion=run_ids)]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="See `drivetrain recipes`.", autocompletion=recipe_names)]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Name, NAME/VERSION, folder or URL.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override section.key of the job.", autocompletion=job_keys),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
Server = Annotated[
    str | None,
    typer.Option(envvar="DRIVETRAIN_SERVER", metavar="URL", help="Server to ask; by default this machine's runs."),
]
SharedServer = Annotated[
    str | None,
    typer.Option(envvar="DRIVETRAIN_SERVER", metavar="URL", help="Server to ask; http://127.0.0.1:8900 by default."),
]
Address = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Ray cluster to join; by default this machine's, or a new one.")
]
Endpoint = Annotated[str | None, typer.Option(metavar="URL", help="S3 endpoint other than AWS.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
