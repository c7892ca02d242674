"""Tables are cut only where necessary and useful."""

from __future__ import annotations

import pytest
from drivetrain.cli import tables
from rich.console import Console
from rich.table import Table

WORDS = "word " * 40


def table() -> Table:
    made = Table("a", "b", box=None)
    made.add_row("x", WORDS.strip())
    return made


def test_a_pipe_gets_whole_lines_without_padding(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(table())
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["a", "b"], ["x", *WORDS.split()]]
    tables.show(table())
    assert all(line == line.rstrip() for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(("whole", "lines"), [(False, 4), (True, 2)])
def test_a_terminal_folds_what_may_be_folded(
    whole: bool, lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def console(width: int = 80) -> Console:
        return Console(width=width, force_terminal=True, color_system=None)

    monkeypatch.setattr(tables, "Console", console)
    tables.show(table(), whole=whole)
    assert len(capsys.readouterr().out.splitlines()) == lines
