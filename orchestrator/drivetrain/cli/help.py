"""The help text: plain, grouped, one line for each command."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

PANELS = RUN, INSPECT, DATA, SHARE, CLUSTER, DEVELOPMENT = "Run", "Inspect", "Data", "Share", "Cluster", "Development"
_OTHERS = "Commands"


class HelpGroup(TyperGroup):
    """A group of commands whose help lists them by panel. Without arguments it prints its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; no arguments mean ``--help``, on stdout and with exit code 0."""
        if not args and not ctx.resilient_parsing:
            args = ["--help"]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel. Names are aligned over all sections, and no line is cut."""
        commands = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))}
        width = max(map(len, commands), default=0)
        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in (*PANELS, _OTHERS)}
        for name, command in commands.items():
            panel = getattr(command, "rich_help_panel", None)
            row = (f"{name:<{width}}", (command.help or "").strip().partition("\n")[0])
            panels[panel if isinstance(panel, str) else _OTHERS].append(row)
        for title, rows in panels.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  # the base class calls it so
        """Write the epilog as it is, without filling its lines."""
        if self.epilog:
            formatter.write(f"\n{self.epilog.strip()}\n")
