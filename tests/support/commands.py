"""The command line in this process, and what a run has recorded."""

from __future__ import annotations

from pathlib import Path

from gncompile.app.cli import main
from gncompile.app.run_folder import RunFolder


def run(*arguments: object) -> int:
    """The exit code of ``gncompile ARGUMENTS``."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def losses(folder: Path) -> list[float]:
    """The loss of every update of a run, none of them left out."""
    records = RunFolder(folder).history()
    assert [record["update"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]
