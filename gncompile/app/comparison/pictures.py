"""Loss against updates and against seconds: the median over seeds, and the range as a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...base.files import atomic_path
from ...base.untrusted import in_picture
from .standings import Standing
from .store import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Abscissa = Literal["updates", "seconds"]
DASHES = {
    "gauss-newton": "-",
    "first-order": "--",
    "preconditioned": "-.",
    "quasi-newton": ":",
}
HEADROOM = 1.5
"""Losses above so many times the first are not shown: one curve that rises would flatten all others."""


def draw(tasks: Sequence[Sequence[Standing]], path: Path) -> Path | None:
    """Training losses, two panels for each task; None without matplotlib or without a finished run."""
    shown = [[s for s in of_task if math.isfinite(s.loss)] for of_task in tasks]
    shown = [of_task for of_task in shown if of_task]
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not shown:
        return None
    names = dict.fromkeys(s.optimiser for of_task in shown for s in of_task)
    colours = {name: f"C{number % 10}" for number, name in enumerate(names)}
    figure = Figure(figsize=(10, 4.2 * len(shown)), dpi=120, layout="constrained")
    for row, of_task in zip(figure.subfigures(len(shown), squeeze=False)[:, 0], shown, strict=True):
        _draw_task(row.subplots(1, 2, sharey=True), of_task, colours)
        row.suptitle(in_picture(of_task[0].task))
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return path


def _draw_task(
    panels: Sequence[Axes], shown: Sequence[Standing], colours: Mapping[str, str]
) -> None:
    abscissas: tuple[Abscissa, ...] = ("updates", "seconds")
    for axes, abscissa in zip(panels, abscissas, strict=True):
        for standing in shown:
            x, losses = curves([run for run in standing.runs if run.status == "done"], abscissa)
            style, label = DASHES[standing.family], standing.optimiser
            colour = colours[label]
            axes.plot(x, np.median(losses, axis=0), style, color=colour, label=label)
            axes.fill_between(x, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.15)
        axes.set(xlabel=abscissa, xscale="symlog" if abscissa == "updates" else "linear")
        axes.grid(visible=True, alpha=0.3)
    runs = [run for s in shown for run in s.runs]
    if all(point.train > 0 for run in runs for point in run.points):
        panels[0].set_yscale("log")
        panels[0].set_ylim(top=ceiling(runs))
    panels[0].set_ylabel("training loss")
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def ceiling(runs: Sequence[Run]) -> float | None:
    """The loss above which curves are cut off, if some go higher."""
    highest = HEADROOM * max(run.points[0].train for run in runs if run.points)
    above = any(point.train > highest for run in runs for point in run.points)
    return highest if above else None


def curves(runs: Sequence[Run], abscissa: Abscissa) -> tuple[np.ndarray, np.ndarray]:
    """All runs' training losses at the same values of the abscissa: ``[P]`` and ``[runs, P]``.

    Runs of one budget of seconds make different numbers of updates; losses between two evaluations are
    interpolated, up to where the shortest run ends.
    """
    positions = [[float(getattr(point, abscissa)) for point in run.points] for run in runs]
    shortest = min(positions, key=lambda each: each[-1])
    losses = [
        np.interp(shortest, own, [point.train for point in run.points])
        for own, run in zip(positions, runs, strict=True)
    ]
    return np.array(shortest), np.stack(losses)
