"""Every command in the documentation runs, and every file that it names exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from _pytest.mark import ParameterSet
from drivetrain.cli.app import app
from typer.testing import CliRunner

from tests.benchmarks.scheduling import write_trace
from tests.cluster.harness import Result, command_line
from tests.cluster.service import running_service

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown_commands() -> list[str]:
    """Return the lines of code blocks that start with one of our commands, without comments."""
    found = (re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE) for page in PAGES)
    blocks = [block for page in found for language, block in page if not language]
    lines = [line.partition("#")[0].rstrip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith(("make ", "drivetrain "))})


@pytest.mark.parametrize("command", [c for c in shown_commands() if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    """`make test` cannot run inside itself, so only the existence of its target is checked."""
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


SHARED = {"server", "token", "submit", "status", "logs", "wait", "queue", "nodes", "cancel", "retry"}


# These need separate hosts: test_launcher.py and test_doctor.py run them.
WITH_HOSTS = {
    "drivetrain cluster up FILE --dry-run",
    "drivetrain cluster up FILE",
    "drivetrain cluster status FILE",
    "drivetrain cluster down FILE",
    "drivetrain doctor --cluster",
}


# These take long and have separate tests: main job, plan, doctor, checkpoint verbs and assessment.
TESTED_ELSEWHERE = ("run", "plan", "doctor", "predict", "export", "scaling-curve")


def slow_if_tested_elsewhere(command: str) -> ParameterSet:
    slow = command.split()[1] in TESTED_ELSEWHERE
    return pytest.param(command, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("command", [c for c in shown_commands() if c.startswith("drivetrain ")])
def test_shown_verbs_and_options_are_ours(command: str) -> None:
    """Each command is parsed; the tests below run them."""
    done = CliRunner().invoke(app, [*shlex.split(command)[1:], "--help"])
    assert done.exit_code == 0, done.output


def needs_server(command: str) -> bool:
    return command.split()[1] in SHARED or "--server" in command


def test_commands_that_need_hosts_are_known() -> None:
    found = {c for c in shown_commands() if c.startswith("drivetrain cluster") or c.endswith("--cluster")}
    assert found == WITH_HOSTS


@pytest.mark.parametrize(
    "command",
    [
        slow_if_tested_elsewhere(command)
        for command in shown_commands()
        if command.startswith("drivetrain ") and not needs_server(command) and command not in WITH_HOSTS
    ],
)
def test_drivetrain_commands_work(command: str, toy_job: Path, undisturbed: Result, tmp_path: Path) -> None:
    """As shown, with this test's job and run (the data of the recipe would have to be downloaded)."""
    ours = {
        "job.yaml": str(toy_job),
        "path/to/job.yaml": str(toy_job / "job.yaml"),
        "language-model": str(toy_job),
        "RUN": undisturbed.run_id,
        "DATASET": "toy",
    }
    ours |= {name: str(tmp_path / name) for name in ("exported", "trace.csv", "my-translation")}
    ours["path/to/a/folder"] = str(tmp_path)
    write_trace(tmp_path / "trace.csv", 30, 128, 0.5)
    words = [ours.get(word, word) for word in shlex.split(command)[1:]]
    words = ["training.steps=2" if word == "training.steps=50" else word for word in words]
    if words[0] == "run" and "--set" not in words:
        words += ["--set", "training.steps=2"]
    if words[0] == "scaling-curve":
        words += ["--picture", str(tmp_path / "curve.png"), "--fractions", "0.5,1"]
    done = command_line(undisturbed.home, *words)
    assert done.returncode == 0, done.stderr


def test_commands_of_a_shared_cluster_work(short_job: Path, tmp_path: Path) -> None:
    """As shown, and in this order."""
    block = re.search(r"^```\n(.*?)^```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL | re.MULTILINE)
    assert block
    lines = [line.partition("#")[0].rstrip() for line in block[1].splitlines()]
    shown = [line for line in lines if needs_server(line) and line != "drivetrain server"]
    assert len(shown) == 12
    with running_service(tmp_path) as service:
        run = ""
        for line in shown:
            ours = {"path/to/job.yaml": str(short_job), "RUN": run, "training.steps=50": "training.steps=4"}
            words = [ours.get(word, word) for word in shlex.split(line)[1:]]
            words = [service.url if word.startswith("http://") else word for word in words]
            done = service.command(*words)
            assert done.returncode == 0, (line, done.stderr)
            if words[0] == "submit":
                run = run or done.stdout.strip()
        with service.client() as admin:
            assert {admin.wait(one.id, 240).reason for one in admin.list()} == {"completed"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_job_file_page_shows_every_key() -> None:
    from drivetrain.job.spec import JobSpec

    page = (ROOT / "docs" / "job-file.md").read_text()
    for name, field in JobSpec.model_fields.items():
        assert f"{name}:" in page, name
        inner = getattr(field.annotation, "model_fields", {})
        for key in inner:
            assert re.search(rf"\b{key}\b", page), f"{name}.{key}"


def test_cluster_page_shows_valid_settings() -> None:
    from drivetrain.job.spec import ResourcesSpec, SchedulingSpec
    from drivetrain.scheduling.rules import Rules

    job, rules = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL | re.MULTILINE
    )
    shown = yaml.safe_load(job)
    ResourcesSpec.model_validate(shown["resources"])
    assert SchedulingSpec.model_validate(shown["scheduling"]).expected_hours == 3
    assert set(yaml.safe_load(rules)) == set(Rules.model_fields) - {"backfill_depth"}
    assert Rules.model_validate(yaml.safe_load(rules)).users["ann"].weight == 2
