"""A comparison's folder: what is written when runs have ended.

::

    points.csv           all points of all runs, one a row
    standings.json       what the tables say, as data
    TASK.png             training loss against updates and against seconds
    gauss-newton.png     the same of our methods alone, if there are several, for all tasks
    report.md            tables, pictures, versions and machine
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...base.environment import table as lines
from ...base.files import atomic_write
from ...base.tables import WIDE
from ...base.untrusted import fenced, in_markdown, slug
from .pictures import draw
from .standings import by_task, overview, records, standings, text
from .store import Run, tidy

ALL_OF_OURS = "gauss-newton"
EXPLAINED = """\
All optimisers start from the same weights, see the same batches in the same order (ours put several together
for a step where their gradients are mostly noise), and train for the same budget; evaluations and what comes
before the first step (`setup s`, compilation included) are not part of it. `runs` counts the points of an
optimiser's grid and the seeds; `search s` are the seconds trained with settings that were not the best.
`loss` is the median over seeds of the final loss on the first samples of the training data, `range` its
lowest and highest, `validation` the same median on the validation data."""


def write_report(folder: Path, title: str, runs: Sequence[Run], machine: Mapping[str, str]) -> str:
    """Write everything but the runs themselves; returns the tables as text."""
    found = standings(runs)
    tables = {task: text(of_task) for task, of_task in by_task(found).items()}
    summary = overview(found) if len(tables) > 1 else ""
    sections = [f"# {in_markdown(title)}", EXPLAINED]
    if summary:
        sections += ["## All tasks", fenced(overview(found, WIDE))]
    for task, of_task in by_task(found).items():
        picture = draw([of_task], folder / f"{_picture(task)}.png")
        sections += [f"## {in_markdown(task)}", fenced(text(of_task, WIDE))]
        sections += [f"![{in_markdown(task)}]({picture.name})"] if picture else []
    ours = [s for s in found if s.family == "gauss-newton"]
    if len({s.optimiser for s in ours}) > 1:
        picture = draw(list(by_task(ours).values()), folder / f"{ALL_OF_OURS}.png")
        sections += ["## Gauss-Newton methods", f"![]({picture.name})"] if picture else []
    sections += ["## Environment", fenced(lines(dict(machine))), ""]
    atomic_write(folder / "points.csv", tidy(runs))
    atomic_write(folder / "standings.json", json.dumps(records(found), indent=2) + "\n")
    atomic_write(folder / "report.md", "\n\n".join(sections))
    shown = [f"{task}\n\n{each}" for task, each in tables.items()]
    return "\n\n".join([*shown, *([summary] if summary else [])])


def _picture(task: str) -> str:
    """The file of a task's picture, which is never that of all tasks."""
    name = slug(task, "task")
    return f"{name}-task" if name == ALL_OF_OURS else name
