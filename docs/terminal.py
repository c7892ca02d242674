"""Run a command and draw its output as a terminal, in SVG.

Usage: python docs/terminal.py FILE COMMAND...
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

_WIDTH = 108  # columns
_HEAD, _TAIL = 16, 26  # lines that are shown of a long output
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # they would be fetched from a CDN


def main() -> None:
    """Run the command, and write the picture even if the command fails."""
    path, *command = sys.argv[1:]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    Path(path).write_text(draw(shlex.join(command), done.stdout))
    sys.exit(done.returncode)


def draw(command: str, output: str) -> str:
    """Return the picture of a command and its output, whose middle is left out when it is long."""
    lines = output.rstrip().splitlines()
    if len(lines) > _HEAD + _TAIL:
        lines = [*lines[:_HEAD], "...", *lines[-_TAIL:]]
    console = Console(record=True, width=_WIDTH, file=io.StringIO())
    console.print(Text(f"$ {command}", style="bold"))
    for line in lines:
        console.print(
            Text(line.replace(str(Path.home()), "/home/me"), style="green" if line.startswith("completed") else "")
        )
    return _FONTS.sub("", console.export_svg(title="drivetrain", unique_id="terminal"))


if __name__ == "__main__":
    main()
