"""What each default is worth: the same trainings with one option changed at a time.

Compared is the time to reach a loss, that of the defaults at :data:`MOMENT` of the budget. A ratio of losses
would mean little: near the lowest possible loss 1 % can be half of the time, and where a network learns its
samples by heart twice the loss is a step or two.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from gncompile.app.comparison.contest import Contest
from gncompile.app.comparison.optimisers import (
    DEFAULTS,
    OPTIMISERS,
    Optimiser,
    Setting,
    Steps,
    named,
)
from gncompile.app.comparison.store import Run, spelled
from gncompile.app.comparison.task import Task
from gncompile.base.files import atomic_path, atomic_write
from gncompile.base.settings import Settings
from gncompile.base.tables import table
from gncompile.errors import CompileError, require_known

CHANGES: Mapping[str, tuple[float, ...]] = {
    "damping": (1.0, 0.01),
    "damping_rate": (0.9, 0.98),
    "damping_period": (2, 20),
    "search_steps": (0, 20),
    "factor_damping_period": (10, 40),
    "trace_correction": (0,),
    "factor_share": (0.125, 1.0),
    "factors_every": (1, 4),
    "factor_average": (0.9, 0.98),
    "whole_inputs": (0,),
    "refresh_every": (5, 20),
    "momentum": (0,),
    "layer_steps": (0, 12),
    "step_cap": (1.0,),
    "step_growth": (0,),
    "quadratic_share": (0.125, 1.0),
    "average": (0,),
    "gather_noise": (0, 0.8),
}
"""Other values of each option; 0 switches off what can be."""
OPTIONAL = ("step_growth", "gather_noise")
"""Options that None switches off."""
POINTS = 8
"""Evaluations in a run besides the first; between them the logarithm of the loss is interpolated."""
MOMENT = 2 / 3


@dataclass(frozen=True)
class Effect:
    """Times to reach a loss with one option changed, as multiples of those with the defaults."""

    task: str
    setting: Setting
    ratios: tuple[float, ...]
    """One a seed; infinite for a run that did not reach the loss."""
    losses: tuple[float, ...]
    """Final training losses."""

    @property
    def ratio(self) -> float:
        """The geometric mean over seeds; infinite if one is."""
        return statistics.geometric_mean(self.ratios)


def settings(names: Sequence[str] = ()) -> list[Setting]:
    """The defaults, then every changed option, of ``names`` only if there are any."""
    for name in names:
        require_known("option", name, CHANGES, "some")
    return [DEFAULTS, *({n: v} for n in names or CHANGES for v in CHANGES[n])]


def options(setting: Setting) -> dict[str, object]:
    """A setting as :func:`gncompile.compile` takes it: flags and whole numbers by the defaults' types."""
    given: dict[str, object] = {}
    for name, value in setting.items():
        default = getattr(Settings(), name)
        kind = type(default) if isinstance(default, int) else float
        given[name] = None if name in OPTIONAL and not value else kind(value)
    return given


def varied(names: Sequence[str]) -> str:
    """The one method of ours that is named; anything else raises."""
    found = [each.name for each in named(names) if each.family == "gauss-newton"]
    if len(names) > 1 or not found:
        raise CompileError(
            f"sensitivity of {', '.join(names)}", instead="name one method of ours, as kfra"
        )
    return found[0]


def variable(method: str) -> Optimiser:
    """Our trainer by curvature method, whose setting holds options that differ from the defaults."""
    ours = OPTIMISERS[method]

    def start(task: Task, model: nn.Module, seed: int, setting: Setting) -> Steps:
        changed = replace(task, options={**task.options, **options(setting)})
        return ours.start(changed, model, seed, DEFAULTS)

    return replace(ours, start=start)


def measure(
    task: Task, contest: Contest, method: str = "kfra", names: Sequence[str] = ()
) -> Iterator[Effect]:
    """The effect of every setting on one task, the defaults first; runs are kept by the contest.

    Raises :class:`~gncompile.errors.CompileError` if the defaults themselves did not end well.
    """
    trained, unit = variable(method), contest.budget.unit
    usual: list[Run] = []
    for setting in settings(names):
        runs = [contest.run(task, trained, setting, seed) for seed in contest.seeds]
        if not usual:
            usual = runs
            _require_done(usual)
        ratios = tuple(longer(*pair, unit) for pair in zip(runs, usual, strict=True))
        yield Effect(task.name, setting, ratios, tuple(run.final for run in runs))


def _require_done(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.status != "done":
            raise CompileError(
                f"the defaults {run.status} at seed {run.seed}: {run.note}",
                where=f"{run.task} by {run.optimiser}",
                instead="name another problem or method",
            )


def longer(run: Run, usual: Run, unit: str) -> float:
    """How many times longer, in seconds or updates, ``run`` took to a loss that ``usual`` came to."""
    moments, losses = _curve(usual, unit)
    wanted = np.interp(MOMENT * moments[-1], moments, losses)
    return _reached(run, wanted, unit) / _reached(usual, wanted, unit)


def _reached(run: Run, wanted: float, unit: str) -> float:
    """When the logarithm of the loss was first ``wanted``; infinite if never, or if the run diverged."""
    if run.status != "done":
        return math.inf
    moments, losses = _curve(run, unit)
    later = int(np.argmax(losses <= wanted))
    if losses[later] > wanted:
        return math.inf
    part = slice(max(later - 1, 0), later + 1)
    return float(np.interp(-wanted, -losses[part], moments[part]))


def _curve(run: Run, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Moments of a run and logarithms of its training losses there."""
    spent = [point.seconds if unit == "s" else point.updates for point in run.points]
    return np.array(spent, dtype=float), np.log([point.train for point in run.points])


def text(found: Sequence[Effect]) -> str:
    """Ratios, a row for each setting; the defaults' row has their final losses, the last column all tasks."""
    tasks = list(dict.fromkeys(each.task for each in found))
    rows = [("setting", *tasks, "all")]
    for name, by_task in by_setting(found).items():
        effects = list(by_task.values())
        if effects[0].setting == DEFAULTS:
            said = {each.task: f"{statistics.median(each.losses):.3g}" for each in effects}
            total = ""
        else:
            said = {each.task: _spelled(each.ratio) for each in effects}
            total = _spelled(statistics.geometric_mean([each.ratio for each in effects]))
        rows.append((name, *(said.get(task, "") for task in tasks), total))
    return table(rows, right=range(1, len(rows[0])))


def by_setting(found: Sequence[Effect]) -> dict[str, dict[str, Effect]]:
    """Effects by spelled setting and task."""
    grouped: dict[str, dict[str, Effect]] = {}
    for each in found:
        grouped.setdefault(spelled(each.setting), {})[each.task] = each
    return grouped


def _spelled(ratio: float) -> str:
    return f"{ratio:.2f}" if math.isfinite(ratio) else "never"


def write(found: Sequence[Effect], folder: Path) -> Path:
    """``sensitivity.json``, ``sensitivity.md`` and, with matplotlib, the ratios as a picture."""
    records = [
        {
            "task": each.task,
            "setting": dict(each.setting),
            "losses": [loss if math.isfinite(loss) else None for loss in each.losses],
            "ratio": each.ratio if math.isfinite(each.ratio) else None,
        }
        for each in found
    ]
    atomic_write(folder / "sensitivity.md", f"```text\n{text(found)}\n```\n")
    path = atomic_write(folder / "sensitivity.json", json.dumps(records, indent=2) + "\n")
    _draw(found, folder / "sensitivity.png")
    return path


def _draw(found: Sequence[Effect], path: Path) -> None:
    """The ratios as a picture, if there are any and matplotlib is installed."""
    tasks = list(dict.fromkeys(each.task for each in found))
    rows = {name: row for name, row in by_setting(found).items() if name != spelled(DEFAULTS)}
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    if not rows:
        return
    figure = Figure(figsize=(3 + 0.8 * len(tasks), 1.5 + 0.2 * len(rows)), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    shades = np.full((len(rows), len(tasks)), math.nan)
    for y, row in enumerate(rows.values()):
        for x, task in enumerate(tasks):
            if task in row:
                shades[y, x] = shade = min(math.log2(row[task].ratio), 1)  # never: as dark as twice
                said, ink = _spelled(row[task].ratio), "white" if abs(shade) > 0.7 else "black"
                axes.text(x, y, said, color=ink, ha="center", va="center", fontsize=6)
    image = axes.imshow(shades, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    scale = figure.colorbar(image, ticks=[-1, 0, 1])
    scale.ax.set_yticklabels(["half", "as by default", "twice, or never"])
    figure.suptitle("time to the same training loss with one option changed")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
