"""The list of commands in ``gncompile --help``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

FIRST = "init", "check", "train", "resume", "evaluate", "predict"
"""Commands in the order in which a user comes to need them; the others follow."""


class Commands(TyperGroup):
    """Commands with the whole first paragraph of their help, which typer cuts where a line ends."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all, :data:`FIRST` first."""
        return [*FIRST, *(name for name in self.commands if name not in FIRST)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a row for every command."""
        rows = [
            (name, " ".join((self.commands[name].help or "").partition("\n\n")[0].split()))
            for name in self.list_commands(ctx)
            if not self.commands[name].hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
