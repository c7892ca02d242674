"""Every command in the documentation is one of ours, and is run by a test or listed with the reason why not."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from drivetrain.cli.app import app
from typer.main import get_command
from typer.testing import CliRunner

from tests.docs_pages import GENERATED, NOT_RUN_HERE, PAGES, ROOT, blocks, commands

_INLINE = re.compile(r"`drivetrain ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?[^`]*`")


def test_every_command_is_run_or_listed() -> None:
    unknown = [c for c in commands() if not c.startswith(("make ", "drivetrain ")) and c not in NOT_RUN_HERE]
    assert unknown == []


def test_nothing_is_listed_that_is_not_shown() -> None:
    assert NOT_RUN_HERE.keys() - set(commands()) == set()


def test_tests_that_are_named_exist() -> None:
    for reason in NOT_RUN_HERE.values():
        for path in re.findall(r"tests/[\w/.]+\w", reason):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_commands_are_in_blocks_of_commands(page: Path) -> None:
    """Elsewhere they would not be found by the tests that run them."""
    for block in blocks(page):
        if block.language not in ("bash", "console"):
            assert not re.search(r"^\s*(\$ |make |drivetrain |pip |ray )", block.text, re.MULTILINE), block


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    """`make test` cannot run inside itself; that its recipe exists can be tested."""
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("drivetrain ")])
def test_verbs_and_options_exist(command: str) -> None:
    """Each is parsed; tests/cluster/test_docs.py runs them."""
    done = CliRunner().invoke(app, [*shlex.split(command)[1:], "--help"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_in_the_text_exist(page: Path) -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]  # a group has them
    for verb, inner in _INLINE.findall(page.read_text()):
        assert verb in verbs, verb
        if known := getattr(verbs[verb], "commands", None):
            assert not inner or inner in known, f"{verb} {inner}"
