"""A run's folder: everything needed to read the run, and to go on with it.

::

    model.toml               the model file as it was
    run.json                 how it was started, versions
    history.jsonl            one line an update
    checkpoint.safetensors   the trainer's state, for resume
    loss.png                 the loss against updates
    reconstructions.png      originals above their reconstructions
    report.md                results, the compiled model and its derivation
    derivation/index.html    the derivation as linked pages
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .environment import environment
from .errors import CheckpointError, GncompileError, message
from .files import atomic_path, atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

Record = dict[str, Any]


class RunFolder:
    """The files of one run under ``path``; every method writes completely or not at all."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], model_file: Path, settings: Mapping[str, Any]
    ) -> RunFolder:
        """A new folder holding the model file and how the run was started; refuses one in use."""
        folder = cls(path)
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise GncompileError(
                message(
                    f"the run folder {str(folder.path)!r} is in use",
                    instead=f"choose another one, or go on with: gncompile resume {folder.path}",
                )
            )
        atomic_write(folder.model_file, model_file.read_bytes())
        started = {"base": str(model_file.parent.absolute()), **settings}
        record = {"settings": started, "environment": environment()}
        atomic_write(folder.path / "run.json", json.dumps(record, indent=2) + "\n")
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """An existing run; :class:`CheckpointError` unless it can be read."""
        folder = cls(path)
        for needed in (folder.path / "run.json", folder.model_file):
            if not needed.is_file():
                raise CheckpointError(
                    message(
                        f"{str(folder.path)!r} is not a run folder: {needed.name} is missing",
                        instead="give the folder that gncompile train wrote",
                    )
                )
        return folder

    @property
    def model_file(self) -> Path:
        """The copy of the model file."""
        return self.path / "model.toml"

    @property
    def checkpoint(self) -> Path:
        """Where the trainer saves."""
        return self.path / "checkpoint.safetensors"

    @property
    def derivation(self) -> Path:
        """The folder of the derivation's HTML pages."""
        return self.path / "derivation"

    @property
    def settings(self) -> dict[str, Any]:
        """How the run was started, as given to :meth:`create`, and ``base`` for relative paths."""
        try:
            settings = json.loads((self.path / "run.json").read_text())["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                message("run.json is damaged", where=str(self.path), instead="start the run again")
            ) from error
        return dict(settings)

    # --- History -----------------------------------------------------------------------------------

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to the history; values that JSON lacks become null."""
        line = json.dumps({key: _plain(value) for key, value in record.items()})
        with (self.path / "history.jsonl").open("a") as file:
            file.write(line + "\n")

    def history(self) -> list[Record]:
        """All records; a last line cut short by a crash is left out."""
        path = self.path / "history.jsonl"
        records = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def rewind(self, updates: int) -> None:
        """Forget what was recorded after ``updates``: a resumed run does those again."""
        kept = [record for record in self.history() if record.get("update", 0) <= updates]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        atomic_write(self.path / "history.jsonl", lines)

    # --- Pictures and text -------------------------------------------------------------------------

    def write_report(self, text: str) -> Path:
        """Write ``report.md``."""
        return atomic_write(self.path / "report.md", text)

    def plot_loss(self) -> Path | None:
        """Draw the history's ``loss`` and ``validation_loss``; None without matplotlib or history."""
        records = self.history()
        curves = {
            label: [(r["update"], r[key]) for r in records if r.get(key) is not None]
            for key, label in (("loss", "batch"), ("validation_loss", "validation"))
        }
        figure = _figure(6.4, 4.0)
        if figure is None or not curves["batch"]:
            return None
        axes = figure.add_subplot()
        for (label, points), marker in zip(curves.items(), ("", "o"), strict=True):
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
        if all(value > 0 for points in curves.values() for _, value in points):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.set(xlabel="updates", ylabel="loss")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
        return _save(figure, self.path / "loss.png")

    def plot_reconstructions(
        self, originals: Tensor, reconstructions: Tensor, shape: tuple[int, ...]
    ) -> Path | None:
        """Draw images ``[N, height · width]`` above their reconstructions; None without matplotlib."""
        count = len(originals)
        figure = _figure(max(4.0, 0.7 * count), 2.0)
        if figure is None:
            return None
        rows = (("original", originals), ("reconstruction", reconstructions))
        for row, (label, images) in enumerate(rows):
            # [N, height, width] -> [height, N · width], the images side by side
            strip = images.detach().cpu().reshape(count, *shape).permute(1, 0, 2)
            axes = figure.add_subplot(2, 1, row + 1)
            axes.imshow(strip.reshape(shape[0], -1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_ylabel(label, fontsize=8)
        return _save(figure, self.path / "reconstructions.png")


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or ``parent/name-2``, ``-3``, … if that exists."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "run"
    path, number = parent / safe, 1
    while path.exists():
        number += 1
        path = parent / f"{safe}-{number}"
    return path


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # one number in a tensor or an array
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figure(width: float, height: float) -> Figure | None:
    """An empty figure that needs no display, or None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return path
