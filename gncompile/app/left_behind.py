"""What an attempt that was killed has left: a launcher starts it again with the same arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import GncompileError
from .run_folder import RunFolder
from .started import Started


def left_behind(
    model_file: Path,
    folder: Path | None,
    asked: Mapping[str, int | str | None],
    restarted: bool,
) -> Path | None:
    """The newest run of the same model file, that was asked for the same, and that no process trains.

    In ``folder``, or without one in any of ``runs/``. One that has come to its end counts only where the
    launcher has ``restarted`` this process.
    """
    if not model_file.is_file():
        return None
    content, base, runs = model_file.read_bytes(), str(model_file.parent.absolute()), Path("runs")
    places = [folder] if folder else [*runs.iterdir()] if runs.is_dir() else []
    found = []
    for place in places:
        try:
            run = RunFolder.open(place)
            started = Started.of(run)
            same = started.base == base and started.asked == asked
            if same and run.model_file.read_bytes() == content and (restarted or not started.ended):
                run.hold()
                run.release()
                found.append(place)
        except (GncompileError, OSError):
            continue  # no run, another version's, or one that is being trained
    return max(found, key=lambda place: (place / "run.json").stat().st_mtime, default=None)
