"""``python -m benchmarks.hessian_free``: conjugate gradients beside KFRA, per update and per second.

The autoencoders of MNIST and CURVES, trained by the defaults and by ``block_hessian_free`` and ``newton_cg``
with curvature shares of ⅛, ¼ and 1, from the same weights on the same batches. A run has its budget of
seconds; losses at other times and updates are interpolated between its evaluations, in their logarithm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gncompile.app.comparison.contest import Contest
from gncompile.app.comparison.optimisers import (
    DEFAULTS,
    Optimiser,
    Setting,
    Steps,
    TrainerSteps,
)
from gncompile.app.comparison.running import CLOCKS, Budget
from gncompile.app.comparison.store import Point, Run
from gncompile.app.comparison.task import Task
from gncompile.base.tables import WIDE, table

from .convergence.problems import PROBLEMS
from .machine import environment

NAMED = ("mnist", "curves")
SOLVERS = ("block_hessian_free", "newton_cg")
SHARES = (0.125, 0.25, 1.0)
UPDATES = (10, 30, 100)
PARTS = (0.1, 0.3, 1.0)
"""Of the budget's seconds."""
POINTS = 12


def contestants(shares: Sequence[float] = SHARES) -> Iterator[Optimiser]:
    """KFRA with its defaults, then both solvers with every share."""
    yield contestant("kfra", {})
    for solver in SOLVERS:
        for share in shares:
            options = {"solver": solver, "curvature_share": share}
            yield contestant(f"{solver} {share:g}", options)


def contestant(name: str, options: Mapping[str, object]) -> Optimiser:
    """Our trainer with these options."""

    def start(task: Task, model: nn.Module, seed: int, setting: Setting) -> Steps:
        changed = replace(task, options={**task.options, **options})
        return TrainerSteps("kfra", changed, model, seed)

    return Optimiser(name, "gauss-newton", start)


def row(run: Run, budget: Budget) -> list[str]:
    """Losses after so many updates and seconds, where the run came so far."""
    last = run.points[-1]
    by_update = (_loss(run, n, lambda point: point.updates) for n in UPDATES)
    by_time = (_loss(run, part * budget.amount, lambda point: point.seconds) for part in PARTS)
    found = [f"{x:.2f}" if np.isfinite(x) else "-" for x in (*by_update, *by_time)]
    return [run.optimiser, *found, f"{last.updates}", f"{last.seconds / max(last.updates, 1):.3f}"]


def _loss(run: Run, at: float, place: Callable[[Point], float]) -> float:
    known = [point for point in run.points if point.finite]
    places, losses = [place(p) for p in known], np.log([p.train for p in known])
    return float(np.exp(np.interp(at, places, losses, right=np.nan)))


def text(runs: Sequence[Run], budget: Budget) -> str:
    """One table a problem."""
    heading = ["", *(f"{n} updates" for n in UPDATES)]
    heading += [*(f"{part * budget.amount:g} s" for part in PARTS), "updates", "s each"]
    tasks = dict.fromkeys(run.task for run in runs)
    rows = {name: [row(run, budget) for run in runs if run.task == name] for name in tasks}
    columns = range(1, len(heading))
    tables = {name: table([heading, *found], columns, WIDE) for name, found in rows.items()}
    return "\n\n".join(f"{name}\n\n{each}" for name, each in tables.items())


def main(given: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hessian_free", description=__doc__)
    parser.add_argument("--problems", nargs="+", default=NAMED, choices=NAMED, metavar="NAME")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, metavar="SHARE")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--samples", type=int, help="only so many of each problem's data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs/hessian_free"))
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    budget = Budget(options.seconds, "s")
    folder = options.runs / f"{options.samples or 'all'}"
    contest = Contest(
        folder, budget, (options.seed,), options.clock, points=POINTS, machine=environment()
    )
    runs = []
    for name in options.problems:
        task = PROBLEMS[name].task(options.samples)
        for optimiser in contestants(options.shares):
            runs.append(contest.run(task, optimiser, DEFAULTS, options.seed))
    print("\n" + text(runs, budget))
    return 0


if __name__ == "__main__":
    sys.exit(main())
