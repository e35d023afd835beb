"""Time to a relative L2 error on differential equations: ``python -m benchmarks.pde``; see README.md.

The settings are those of Dangel, Müller and Zeinhofer, 2024, arXiv 2405.15603, §4: networks, points, and the
points of evaluation; float64. Beside gncompile's default run Adam, with a grid of rates, and torch's L-BFGS
with strong Wolfe's line search, on the same points and first weights, with residuals written by hand in
``torch.func``. Before anything is timed those are held against gncompile's, value and gradient.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.func import jvp

import gncompile
from gncompile import Box, Term
from gncompile.app.residuals import Problem
from gncompile.base.tables import table

from .machine import environment
from .small_step import mlp
from .timing import JsonOption

AGREEMENT = 1e-9
"""Of residuals and gradient by hand with gncompile's, relative; float64."""
RATES = (1e-2, 3e-3, 1e-3)
THRESHOLDS = (1e-2, 1e-3, 1e-4, 1e-5)
EVALUATED = 9000
FIVE = ("x1", "x2", "x3", "x4", "x5")
ByHand = Callable[["Field", Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Field:
    """A network as a function of points, and its derivatives by nested forward mode."""

    net: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def along(self, x: Tensor, *by: int) -> Tensor:
        """``∂^k u / ∂x_i ∂x_j …`` at the rows of ``x``."""
        function: Callable[[Tensor], Tensor] = self
        for i in by:
            direction = torch.zeros_like(x)
            direction[:, i] = 1
            function = slope(function, direction)
        return function(x)


def slope(function: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
    """The derivative along ``direction``."""
    return lambda x: jvp(function, (x,), (direction,))[1]


@dataclass(frozen=True)
class Equation:
    """A problem: its widths, terms, residuals by hand, and the solution at points."""

    widths: Sequence[int]
    box: Box
    terms: Mapping[str, Term]
    by_hand: ByHand
    truth: Callable[[Tensor], Tensor]
    aims: Mapping[float, float]
    """Seconds within which an error is to be reached."""
    resample_every: int | None = None
    """Steps after which gncompile draws the points anew; the others keep theirs."""


def poisson_2d(widths: Sequence[int], aims: Mapping[float, float]) -> Equation:
    box = Box({"x": (0, 1), "y": (0, 1)})
    terms = {
        "interior": Term(
            "u__x__x + u__y__y + 2*pi**2*sin(pi*x)*sin(pi*y)", box.interior(900, "random")
        ),
        "boundary": Term("u", box.faces(120, how="random")),
    }

    def truth(x: Tensor) -> Tensor:
        return torch.sin(torch.pi * x).prod(dim=1)

    def by_hand(u: Field, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        laplacian = sum(u.along(x["interior"], i, i) for i in range(2))
        return {
            "interior": laplacian + 2 * torch.pi**2 * truth(x["interior"]),
            "boundary": u(x["boundary"]),
        }

    return Equation(widths, box, terms, by_hand, truth, aims)


def poisson_5d(widths: Sequence[int], aims: Mapping[float, float]) -> Equation:
    box = Box(dict.fromkeys(FIVE, (0, 1)))
    solution = " + ".join(f"cos(pi*{x})" for x in FIVE)
    laplacian = " + ".join(f"u__{x}__{x}" for x in FIVE)
    terms = {
        "interior": Term(f"{laplacian} + pi**2*({solution})", box.interior(3000, "random")),
        "boundary": Term(f"u - ({solution})", box.faces(500, how="random")),
    }

    def truth(x: Tensor) -> Tensor:
        return torch.cos(torch.pi * x).sum(dim=1)

    def by_hand(u: Field, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        inside, edge = x["interior"], x["boundary"]
        laplacian = sum(u.along(inside, i, i) for i in range(5))
        return {
            "interior": laplacian + torch.pi**2 * truth(inside),
            "boundary": u(edge) - truth(edge),
        }

    return Equation(widths, box, terms, by_hand, truth, aims)


def heat_1d(widths: Sequence[int], aims: Mapping[float, float]) -> Equation:
    box = Box({"x": (0, 1), "t": (0, 1)})
    terms = {
        "interior": Term("u__t - u__x__x/4", box.interior(900, "random")),
        "sides": Term("u", box.faces(80, of="x", how="random")),
        "start": Term("u - sin(pi*x)", box.face(40, "random", t=0)),
    }

    def truth(p: Tensor) -> Tensor:
        return torch.exp(-(torch.pi**2) * p[:, 1] / 4) * torch.sin(torch.pi * p[:, 0])

    def by_hand(u: Field, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        inside = x["interior"]
        return {
            "interior": u.along(inside, 1) - u.along(inside, 0, 0) / 4,
            "sides": u(x["sides"]),
            "start": u(x["start"]) - torch.sin(torch.pi * x["start"][:, 0]),
        }

    return Equation(widths, box, terms, by_hand, truth, aims)


def burgers(widths: Sequence[int], aims: Mapping[float, float]) -> Equation:
    box, nu = Box({"x": (-1, 1), "t": (0, 1)}), 0.01 / np.pi
    terms = {
        "interior": Term("u__t + u*u__x - 0.01/pi*u__x__x", box.interior(2540, "random")),
        "sides": Term("u", box.faces(80, of="x", how="random")),
        "start": Term("u + sin(pi*x)", box.face(160, "random", t=0)),
    }

    def truth(p: Tensor) -> Tensor:
        """Cole and Hopf's formula by Gauss and Hermite's quadrature."""
        x, t = p.numpy().T[:, :, None]
        z, w = np.polynomial.hermite.hermgauss(100)
        y = x - z * np.sqrt(4 * nu * t)
        power = -np.cos(np.pi * y) / (2 * np.pi * nu)
        f = w * np.exp(power - power.max(axis=1, keepdims=True))
        return torch.from_numpy(-(np.sin(np.pi * y) * f).sum(axis=1) / f.sum(axis=1))

    def by_hand(u: Field, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        p = x["interior"]
        flow = u.along(p, 1) + u(p) * u.along(p, 0) - nu * u.along(p, 0, 0)
        start = u(x["start"]) + torch.sin(torch.pi * x["start"][:, 0])
        return {"interior": flow, "sides": u(x["sides"]), "start": start}

    # Where the shock is, it is thinner than the points lie apart.
    return Equation(widths, box, terms, by_hand, truth, aims, resample_every=1)


DEEP = (2, 64, 64, 48, 48, 1)
EQUATIONS: Mapping[str, Equation] = {
    "poisson_2d/257": poisson_2d((2, 64, 1), {1e-3: 3, 1e-5: 20}),
    "poisson_2d/9873": poisson_2d(DEEP, {1e-3: 30, 1e-5: 150}),
    "heat_1d/257": heat_1d((2, 64, 1), {1e-3: 5, 1e-5: 30}),
    "heat_1d/9873": heat_1d(DEEP, {}),
    "poisson_5d/449": poisson_5d((5, 64, 1), {1e-3: 15}),
    "burgers/921": burgers((2, 20, 20, 20, 1), {1e-3: 300}),
}


@dataclass(frozen=True)
class Posed:
    """An equation with the points and first weights of one seed."""

    equation: Equation
    problem: Problem
    seed: int

    @classmethod
    def of(cls, equation: Equation, seed: int) -> Posed:
        torch.manual_seed(seed)
        net = mlp(*equation.widths).double()
        names = equation.box.names
        problem = gncompile.residuals(net, names, "u", equation.terms, box=equation.box)
        return cls(equation, problem, seed)

    def objective(self, net: nn.Module) -> Callable[[], Tensor]:
        """``Σ_t ½ mean r_t²`` of a network, by hand."""
        batch = self.problem.batch(seed=self.seed)
        points = {name: batch.x[rows] for name, rows in batch.rows.items()}
        u = Field(net)
        residuals = self.equation.by_hand
        return lambda: torch.stack(
            [r.square().mean() / 2 for r in residuals(u, points).values()]
        ).sum()

    def check(self) -> None:
        """Raise unless gncompile and what is written by hand have the same loss and gradient."""
        net = copy.deepcopy(self.problem.net)
        loss = self.objective(net)()
        loss.backward()
        trainer = self.problem.compile(seed=self.seed, method="sgd")
        x, y = self.problem.batch(seed=self.seed).pair(1)
        found = trainer.gradients(x, y)
        wanted = {f"net.{name}": p.grad for name, p in net.named_parameters()}
        size = max(float(g.norm()) for g in wanted.values() if g is not None)
        far = max(float((found[name] - g).norm()) for name, g in wanted.items() if g is not None)
        apart = abs(float(trainer.loss(x, y)) - float(loss.detach())) / float(loss.detach())
        if max(far / size, apart) > AGREEMENT:
            raise SystemExit(f"residuals by hand differ: gradient {far / size:g}, loss {apart:g}")

    def error(self, net: nn.Module, points: Tensor, truth: Tensor) -> float:
        """The relative L2 error."""
        with torch.no_grad():
            return float((net(points)[:, 0] - truth).norm() / truth.norm())


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

    def reached(self, error: float) -> float:
        """Seconds to an error, infinite where it was not reached."""
        found = (s for s, e in zip(self.seconds, self.errors, strict=True) if e <= error)
        return next(found, float("inf"))


def run(problem: str, method: str, seed: int, budget: float) -> Run:
    """Train for ``budget`` seconds; evaluations are not timed."""
    posed = Posed.of(EQUATIONS[problem], seed)
    posed.check()
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([*posed.equation.box.bounds.values()], dtype=torch.float64).T
    unit = torch.rand(EVALUATED, len(low), generator=generator, dtype=torch.float64)
    points = low + (high - low) * unit
    truth = posed.equation.truth(points)
    seconds, errors, spent = [], [], 0.0
    started = time.perf_counter()
    for net in METHODS[method](posed):
        spent += time.perf_counter() - started
        seconds.append(spent)
        errors.append(posed.error(net, points, truth))
        if spent > budget:
            break
        started = time.perf_counter()
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
    """Train each problem with each method, and print the seconds to each error."""
    torch.set_num_threads(threads)
    run("poisson_2d/257", "gncompile", 0, 0.0)  # imports and caches of a first compilation
    runs = []
    for problem in problems.split(","):
        for method in methods.split(","):
            for seed in range(seeds):
                runs.append(run(problem, method, seed, seconds))
                last = runs[-1]
                typer.echo(f"{problem}, {method}, seed {seed}: {min(last.errors):.2g}", err=True)
    rows = rows_of(runs)
    typer.echo(table(rows, right=range(2, 2 + len(THRESHOLDS) + 1), width=120))
    if plot is not None:
        draw(runs, plot)
    if json_path is not None:
        record = {"environment": environment(), "table": rows, "runs": [*map(asdict, runs)]}
        json_path.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    typer.run(main)
