"""Finished runs on disk: one file of JSON lines each, and one table of all points.

A run's first line is a header, every other one a point. A file is written in one step when the run has
ended, so an interruption leaves whole runs only, and those are not made again.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from ...base.files import atomic_write
from ...base.untrusted import in_cell, require_no_link, slug
from ...errors import DataError

Status = Literal["done", "diverged", "failed", "not run"]
COLUMNS = (
    *("task", "optimiser", "setting", "seed", "budget", "status"),
    *("updates", "seconds", "train", "validation"),
)


@dataclass(frozen=True)
class Point:
    """Losses after ``updates`` updates and ``seconds`` seconds of training; infinite if not finite."""

    updates: int
    seconds: float
    train: float
    validation: float

    @property
    def finite(self) -> bool:
        """Whether both losses are numbers."""
        return math.isfinite(self.train) and math.isfinite(self.validation)


@dataclass(frozen=True)
class Run:
    """One training: what was trained, how it ended, and the losses on its way."""

    task: str
    optimiser: str
    setting: Mapping[str, float | str]
    seed: int
    budget: str
    status: Status
    note: str = ""
    setup: float = 0.0
    """Seconds before the first step, compilation included; not part of the budget."""
    points: tuple[Point, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def final(self) -> float:
        """The last training loss; infinite for a run that diverged or was not made."""
        return self.points[-1].train if self.status == "done" else math.inf

    @property
    def seconds(self) -> float:
        """Seconds trained."""
        return self.points[-1].seconds if self.points else 0.0

    def reached(self, loss: float) -> float:
        """Seconds after which the training loss was first measured at most ``loss``; infinite if never."""
        return next((point.seconds for point in self.points if point.train <= loss), math.inf)


_RUN = TypeAdapter(Run)


def spelled(setting: Mapping[str, float | str]) -> str:
    """``lr=0.001 cosine``; ``defaults`` for none."""
    words = [
        value if key == "schedule" else f"{key}={value:g}"
        for key, value in sorted(setting.items())
        if not isinstance(value, str) or key == "schedule"
    ]
    return " ".join(map(str, words)) or "defaults"


def file_of(
    folder: Path,
    task: str,
    optimiser: str,
    setting: Mapping[str, float | str],
    seed: int,
    budget: str,
) -> Path:
    """Where a run is kept in the folder of all runs."""
    name = "-".join([optimiser, *spelled(setting).split(), f"seed{seed}", budget])
    return folder / slug(task, "task") / f"{name}.jsonl"


def write(folder: Path, run: Run) -> Path:
    """Keep a finished run."""
    header = dataclasses.asdict(run)
    points = header.pop("points")
    lines = [json.dumps(_plain(line)) for line in (header, *points)]
    path = file_of(folder, run.task, run.optimiser, run.setting, run.seed, run.budget)
    for place in (path.parent.parent, path.parent):
        require_no_link(place)
    return atomic_write(path, "\n".join(lines) + "\n")


def read(path: Path) -> Run:
    """A kept run; :class:`~gncompile.errors.DataError` if the file is not one."""
    try:
        header, *points = [json.loads(line) for line in path.read_bytes().splitlines()]
        content = {**header, "points": [_numbers(point) for point in points]}
        return _RUN.validate_json(json.dumps(content), strict=True)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # pydantic's, too
        first = str(error).split("\n", 1)[0][:200]
        raise DataError(
            f"not a stored run: {first}", where=str(path), instead="delete the file"
        ) from error


def read_all(folder: Path, budget: str | None = None) -> list[Run]:
    """All runs kept in ``folder``, of one budget if given, ordered by file name."""
    runs = [read(path) for path in sorted(folder.glob("*/*.jsonl"))]
    return [run for run in runs if budget is None or run.budget == budget]


def tidy(runs: Iterable[Run]) -> str:
    """All points of all runs as CSV, one a row."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for run in runs:
        head = (run.task, run.optimiser, spelled(run.setting), run.seed, run.budget, run.status)
        table.writerows((*map(in_cell, head), *dataclasses.astuple(point)) for point in run.points)
    return text.getvalue()


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Infinite losses as null, which JSON has."""
    return {key: None if value == math.inf else value for key, value in record.items()}


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.inf if value is None else value for key, value in record.items()}
