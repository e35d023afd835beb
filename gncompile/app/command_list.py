"""The list of commands in ``gncompile --help``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class Commands(TyperGroup):
    """Commands with the whole first paragraph of their help, which typer cuts where a line ends."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a row for every command."""
        rows = [
            (name, " ".join((command.help or "").partition("\n\n")[0].split()))
            for name, command in self.commands.items()
            if not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
