"""Time to a relative L2 error on differential equations: ``python -m benchmarks.pde``; see README.md.

Beside gncompile's default run Adam, with a grid of rates, and torch's L-BFGS with strong Wolfe's line search,
on residuals written by hand in ``torch.func``, and DeepXDE's L-BFGS where it is installed, all on the same
points from the same weights. Before anything is timed those are held against gncompile's, value and gradient.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from gncompile.base.tables import table

from .deepxde_peer import deepxde
from .equations import EQUATIONS, Posed
from .machine import environment, installed
from .timing import CLOCKS, Clock, JsonOption

RATES = (1e-2, 3e-3, 1e-3)
THRESHOLDS = (1e-2, 1e-3, 1e-4, 1e-5)
EVALUATED = 9000
Steps = Iterator[nn.Module]
"""Gives the network after each few steps; what happens between two is timed."""


def ours(posed: Posed, **options: Any) -> Steps:
    """gncompile's default."""
    trainer = posed.problem.compile(seed=posed.seed, **options)
    batches = trainer.batches(posed.equation.resample_every)
    while True:
        trainer.fit(batches, updates=5, progress=False, validation=None)
        yield posed.problem.net


def adam(posed: Posed, rate: float) -> Steps:
    """``torch.optim.Adam``, fused, the rate falling to a thousandth in 20,000 steps."""
    net = copy.deepcopy(posed.problem.net)
    loss = posed.objective(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    falls = torch.optim.lr_scheduler.ExponentialLR(optimiser, 1e-3 ** (1 / 20_000))
    while True:
        for _ in range(20):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
            falls.step()
        yield net


def lbfgs(posed: Posed) -> Steps:
    """``torch.optim.LBFGS`` with strong Wolfe's line search and a history of 100."""
    net = copy.deepcopy(posed.problem.net)
    loss = posed.objective(net)
    optimiser = torch.optim.LBFGS(
        net.parameters(), max_iter=10, history_size=100, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    while True:
        optimiser.step(closure)
        yield net


METHODS: Mapping[str, Callable[[Posed], Steps]] = {
    "gncompile": ours,
    "L-BFGS": lbfgs,
    "DeepXDE L-BFGS": deepxde,
    **{f"Adam {rate:g}": partial(adam, rate=rate) for rate in RATES},
}


@dataclass(frozen=True)
class Run:
    """Errors of one run against the seconds of its steps, compilation included."""

    problem: str
    method: str
    seed: int
    seconds: list[float]
    errors: list[float]

    def record(self) -> dict[str, Any]:
        """For JSON, three digits."""
        paths = {
            key: [float(f"{x:.3g}") for x in getattr(self, key)] for key in ("seconds", "errors")
        }
        return {**asdict(self), **paths}

    def reached(self, error: float) -> float:
        """Seconds to an error, infinite where it was not reached."""
        found = (s for s, e in zip(self.seconds, self.errors, strict=True) if e <= error)
        return next(found, float("inf"))


def run(problem: str, method: str, seed: int, budget: float, clock: Clock = "wall") -> Run:
    """Train for ``budget`` seconds; evaluations are not timed."""
    now = CLOCKS[clock]
    posed = Posed.of(EQUATIONS[problem], seed)
    posed.check()
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([*posed.equation.box.bounds.values()], dtype=torch.float64).T
    unit = torch.rand(EVALUATED, len(low), generator=generator, dtype=torch.float64)
    points = low + (high - low) * unit
    truth = posed.equation.truth(points)
    seconds, errors, spent = [], [], 0.0
    started = now()
    for net in METHODS[method](posed):
        spent += now() - started
        seconds.append(spent)
        errors.append(posed.error(net, points, truth))
        if spent > budget:
            break
        started = now()
    return Run(problem, method, seed, seconds, errors)


def rows_of(runs: Sequence[Run]) -> list[list[str]]:
    """Median seconds to each error, and the error at the end, by problem and method."""
    rows = [["problem", "method", *(f"to {error:g}" for error in THRESHOLDS), "least error", "aim"]]
    for problem, method in dict.fromkeys((r.problem, r.method) for r in runs):
        own = [r for r in runs if (r.problem, r.method) == (problem, method)]
        times = [statistics.median(r.reached(error) for r in own) for error in THRESHOLDS]
        least = statistics.median(min(r.errors) for r in own)
        aims = EQUATIONS[problem].aims.items() if method == "gncompile" else ()
        said = ", ".join(f"{error:g} in {seconds:g} s" for error, seconds in aims)
        shown = ["-" if t == float("inf") else f"{t:.3g} s" for t in times]
        rows.append([problem, method, *shown, f"{least:.2g}", said])
    return rows


def draw(runs: Sequence[Run], path: Path) -> None:
    """Errors against seconds, one picture a problem."""
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(r.problem for r in runs))
    figure = Figure(figsize=(5 * len(problems), 4), layout="constrained")
    for place, problem in enumerate(problems, start=1):
        axes = figure.add_subplot(1, len(problems), place, title=problem)
        axes.set(xlabel="seconds", ylabel="relative L2 error", xscale="log", yscale="log")
        own = [r for r in runs if r.problem == problem]
        for number, method in enumerate(dict.fromkeys(r.method for r in own)):
            several = [r for r in own if r.method == method]
            for r in several:
                label = method if r is several[0] else None
                axes.plot(r.seconds, r.errors, color=f"C{number}", linewidth=1, label=label)
        axes.legend()
    figure.savefig(path)


def main(
    problems: Annotated[str, typer.Option(help="Names, with commas between.")] = ",".join(
        EQUATIONS
    ),
    methods: Annotated[str, typer.Option(help="Names, with commas between.")] = ",".join(METHODS),
    seconds: Annotated[float, typer.Option(help="Of each run.")] = 60.0,
    seeds: Annotated[int, typer.Option(help="Runs of each; medians are told.")] = 3,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 2,
    plot: Annotated[Path | None, typer.Option(help="Also draw here; needs matplotlib.")] = None,
    json_path: JsonOption = None,
) -> None:
    """Train each problem with each method, and print the seconds to each error.

    They are the processor's on one thread, and the clock's on more.
    """
    torch.set_num_threads(threads)
    clock: Clock = "cpu" if threads == 1 else "wall"
    chosen = methods.split(",")
    if "DeepXDE L-BFGS" in chosen and importlib.util.find_spec("deepxde") is None:
        typer.echo("DeepXDE is not installed, and left out", err=True)
        chosen.remove("DeepXDE L-BFGS")
    run("poisson_2d/257", "gncompile", 0, 0.0)  # imports and caches of a first compilation
    runs = []
    for problem in problems.split(","):
        for method in chosen:
            for seed in range(seeds):
                runs.append(run(problem, method, seed, seconds, clock))
                last = runs[-1]
                typer.echo(f"{problem}, {method}, seed {seed}: {min(last.errors):.2g}", err=True)
    rows = rows_of(runs)
    typer.echo(table(rows, right=range(2, 2 + len(THRESHOLDS) + 1), width=120))
    if plot is not None:
        draw(runs, plot)
    if json_path is not None:
        versions = {"deepxde": installed("deepxde")}
        record = {
            "environment": {**environment(), **versions},
            "clock": clock,
            "table": rows,
            "runs": [each.record() for each in runs],
        }
        json_path.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    typer.run(main)
