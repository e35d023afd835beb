"""What each default is worth: the same trainings with one option changed at a time."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from gncompile.comparison.contest import Contest
from gncompile.comparison.optimisers import DEFAULTS, OPTIMISERS, Optimiser, Setting, Steps
from gncompile.comparison.store import Run, spelled
from gncompile.comparison.task import Task
from gncompile.errors import require_known
from gncompile.files import atomic_path, atomic_write
from gncompile.optimiser.settings import Settings
from gncompile.tables import table

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
"""Evaluations in a run: only the last one counts."""


@dataclass(frozen=True)
class Effect:
    """Final training losses with one option changed, as multiples of those with the defaults."""

    task: str
    setting: Setting
    ratios: tuple[float, ...]
    """One a seed; infinite for a run that did not end well."""
    losses: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The geometric mean over seeds."""
        return geometric_mean(self.ratios)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers; infinite if one is."""
    return statistics.geometric_mean(values) if all(map(math.isfinite, values)) else math.inf


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
    """The effect of every setting on one task, the defaults first; runs are kept by the contest."""
    trained = variable(method)
    usual: list[Run] = []
    for setting in settings(names):
        runs = [contest.run(task, trained, setting, seed) for seed in contest.seeds]
        usual = usual or runs
        losses = tuple(run.final for run in runs)
        ratios = tuple(loss / run.final for loss, run in zip(losses, usual, strict=True))
        yield Effect(task.name, setting, ratios, losses)


def text(found: Sequence[Effect]) -> str:
    """Ratios, a row for each setting; the defaults' row has their losses, the last column all tasks."""
    tasks = list(dict.fromkeys(each.task for each in found))
    rows = [("setting", *tasks, "all")]
    for name, by_task in by_setting(found).items():
        effects = list(by_task.values())
        if effects[0].setting == DEFAULTS:
            said = {each.task: f"{statistics.median(each.losses):.3g}" for each in effects}
            total = ""
        else:
            said = {each.task: _spelled(each.ratio) for each in effects}
            total = _spelled(geometric_mean([each.ratio for each in effects]))
        rows.append((name, *(said.get(task, "") for task in tasks), total))
    return table(rows, right=range(1, len(rows[0])))


def by_setting(found: Sequence[Effect]) -> dict[str, dict[str, Effect]]:
    """Effects by spelled setting and task."""
    grouped: dict[str, dict[str, Effect]] = {}
    for each in found:
        grouped.setdefault(spelled(each.setting), {})[each.task] = each
    return grouped


def _spelled(ratio: float) -> str:
    return f"{ratio:.3g}" if math.isfinite(ratio) else "diverged"


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
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return path
    tasks = list(dict.fromkeys(each.task for each in found))
    rows = {name: row for name, row in by_setting(found).items() if name != spelled(DEFAULTS)}
    if not rows:
        return path
    shown = [
        [math.log2(row[task].ratio) if task in row else math.nan for task in tasks]
        for row in rows.values()
    ]
    figure = Figure(figsize=(3 + 0.8 * len(tasks), 1.5 + 0.2 * len(rows)), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    scale = figure.colorbar(image, ticks=[-1, 0, 1])
    scale.ax.set_yticklabels(["half", "as by default", "twice"])
    figure.suptitle("final training loss with one option changed")
    with atomic_path(folder / "sensitivity.png") as temporary:
        figure.savefig(temporary)
    return path
