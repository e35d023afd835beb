"""Regressions until the same loss, by the exact solver and its rivals: ``python -m benchmarks.solvers``.

Every contestant starts at the same parameters and goes on until a time limit. Then aims are set by what was
reached, not by hand: multiples of the least loss of all data that any contestant came to, the median over the
starts, and told is who was at each of them when. Counted is CPU time on one thread, without compiling, which
is stated apart, and without looking at the loss where a contestant does not know it anyway. See README.md.
"""

from __future__ import annotations

import importlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.optimize import least_squares
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import gncompile
from gncompile.app.curve_fit import DEFAULTS
from gncompile.base.tables import table

from .convergence.problems import half_squares
from .machine import environment, installed
from .regressions import Clock, Ended, Problem, problems
from .timing import JsonOption

SAME = 1e-6
"""How far a loss that is told, or a gradient, may be from torch's, relatively; a hundred times in float32."""
AIMS = (10, 2, 1.1, 1.02)
"""Multiples of the least loss. By the last one a problem is won: less is a matter of the time limit."""
MOST_ROWS = 2**28
"""Bytes of a dense Jacobian, and of its factors, that SciPy is given at most."""


Contestant = Callable[[Problem, int, nn.Module, Clock], None]


def ours(**options: Any) -> Contestant:
    """Steps of a compiled trainer."""

    def run(problem: Problem, seed: int, model: nn.Module, clock: Clock) -> None:
        example = problem.x[: problem.batch or None]
        begun = time.process_time()
        trainer = gncompile.compile(model, "mse", example, **options)
        clock.compiled = time.process_time() - begun
        check(problem, trainer, model)
        batches = problem.batches(seed)
        clock.begin()
        for x, y in batches:
            stats = trainer.step(x, y).resolved()
            if problem.batch:
                clock.look(lambda: trainer.evaluate(problem.x, problem.y))
            elif stats.rho is not None and stats.predicted is not None:
                clock.note(stats.objective + stats.rho * stats.predicted)
            else:
                clock.note(stats.objective)

    return run


def check(problem: Problem, trainer: gncompile.Trainer, model: nn.Module) -> None:
    """Raise unless loss and gradient are those of torch."""
    x, y = problem.x[:500], problem.y[:500]
    loss, found = half_squares(model(x), y), trainer.gradients(x, y)
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    got = torch.cat([found[name].flatten() for name, _ in model.named_parameters()])
    off = float((got - wanted).norm() / wanted.norm())
    off = max(off, abs(float(trainer.loss(x, y)) / loss.item() - 1))
    if not off < SAME * (100 if x.dtype == torch.float32 else 1):
        raise SystemExit(f"{problem.name}: loss or gradient differ from torch's by {off:.1e}")


class Flat:
    """Residuals and Jacobian of a network as functions of one vector of parameters."""

    def __init__(self, problem: Problem, model: nn.Module) -> None:
        self.problem, self.model = problem, model
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.start = torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy()

    def named(self, flat: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Parameters by name."""
        given = torch.as_tensor(flat, dtype=self.problem.x.dtype)
        parts = given.split([math.prod(shape) for shape in self.shapes.values()])
        return {name: p.view(s) for (name, s), p in zip(self.shapes.items(), parts, strict=True)}

    def residuals(self, flat: np.ndarray) -> Tensor:
        """``[N K]``."""
        with torch.no_grad():
            out = functional_call(self.model, self.named(flat), (self.problem.x,))
        return (out - self.problem.y).flatten()

    def jacobian(self, flat: np.ndarray) -> np.ndarray:
        """``[N K, P]``, sample by sample under ``vmap``, as torch's documentation advises."""

        def output(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.model, dict(named), (x[None],))[0]

        rows = vmap(jacrev(output), in_dims=(None, 0))(self.named(flat), self.problem.x)
        return (
            torch.cat([rows[name].flatten(2) for name in self.shapes], dim=2).flatten(0, 1).numpy()
        )


def scipys(method: str) -> Contestant:
    """``scipy.optimize.least_squares`` with the Jacobian by ``torch.func``."""

    def run(problem: Problem, seed: int, model: nn.Module, clock: Clock) -> None:
        flat, samples = Flat(problem, model), len(problem.x)
        if samples * len(flat.start) * 8 > MOST_ROWS:
            raise MemoryError(f"a Jacobian of {samples:,} × {len(flat.start):,}")

        def residuals(b: np.ndarray) -> np.ndarray:
            r = flat.residuals(b)
            with clock.paused():
                model.load_state_dict(flat.named(b))
            clock.note(float(r @ r) / (2 * samples))
            return r.double().numpy()

        tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 10**6}
        clock.begin()
        least_squares(residuals, flat.start, jac=flat.jacobian, method=method, **tight)

    return run


def lbfgs(problem: Problem, seed: int, model: nn.Module, clock: Clock) -> None:
    """``torch.optim.LBFGS`` with its line search, all data."""
    endless = {"max_iter": 10**6, "max_eval": 10**7, "tolerance_grad": 0, "tolerance_change": 0}
    optimiser = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", **endless)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = half_squares(model(problem.x), problem.y)
        loss.backward()
        clock.note(loss.item())
        return loss

    clock.begin()
    for _ in range(1000):  # a search that finds nothing ends it; the next begins without memory
        optimiser.step(closure)
        optimiser.state.clear()


def torch_lm(problem: Problem, seed: int, model: nn.Module, clock: Clock) -> None:
    """``torch-levenberg-marquardt`` with its defaults and its faster solution.

    The loss that it tells need not be the model's: after tries that raise it, a last one is taken unseen.
    """
    try:
        training = importlib.import_module("torch_levenberg_marquardt").training
    except ImportError as error:
        raise ValueError(f"is not installed: {error}") from error
    module = training.LevenbergMarquardtModule(model, solve_method="cholesky")
    clock.begin()
    for x, y in problem.batches(seed):
        _, _, stops, _ = module.training_step(x, y)
        if stops:  # at its greatest damping; it begins anew with the first one
            module.reset()
        if problem.batch:
            clock.look(lambda: problem.loss(model))
        else:
            with clock.paused():
                loss = problem.loss(model)
            clock.note(loss)


CONTESTANTS: Mapping[str, Contestant] = {
    "exact": ours(solver="exact"),
    "exact, of fit": ours(solver="exact", **DEFAULTS),
    "KFRA": ours(),
    "scipy lm": scipys("lm"),
    "scipy trf": scipys("trf"),
    "torch LBFGS": lbfgs,
    "torch-lm": torch_lm,
}


@dataclass(frozen=True)
class Result:
    """What one contestant did on one problem, from every seed."""

    clocks: list[Clock]
    refused: str = ""
    """Why it did not run."""

    @property
    def least(self) -> float:
        """The median of the least losses; infinite where it did not run."""
        return statistics.median(each.least for each in self.clocks) if self.clocks else math.inf

    def seconds_to(self, aim: float) -> float:
        """The median of the times; infinite where most starts did not come to it."""
        times = [each.seconds_to(aim) for each in self.clocks]
        return statistics.median(times) if times else math.inf

    def record(self, aims: Sequence[float]) -> dict[str, Any]:
        """For JSON."""
        return {
            "refused": self.refused,
            "seconds": [[_finite(each.seconds_to(aim)) for aim in aims] for each in self.clocks],
            "least loss": [each.least for each in self.clocks],
            "looks": [each.evaluations for each in self.clocks],
            "compile seconds": [each.compiled for each in self.clocks],
        }


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def race(problem: Problem, name: str, seeds: int) -> Result:
    """One contestant from every start."""
    clocks = []
    for seed in range(seeds):
        model, clock = problem.build(seed), Clock(problem)
        try:
            CONTESTANTS[name](problem, seed, model, clock)
        except (ValueError, MemoryError) as error:
            return Result([], str(error).partition(".")[0])
        except Ended:
            pass
        if not problem.batch and not problem.loss(model) <= (1 + SAME) * clock.told:
            told = f"told {clock.told}, has {problem.loss(model)}"
            raise SystemExit(f"{problem.name}, {name}: {told}")
        clocks.append(clock)
    return Result(clocks)


def shown(results: Mapping[str, Result], aims: Sequence[float]) -> str:
    """A table of one problem: seconds to every aim, those to the last one also in the exact solver's."""
    first = results["exact"].seconds_to(aims[-1])
    rows = [("", *(f"{aim:.3g}" for aim in aims), "× exact", "least loss", "compile")]

    def order(each: tuple[str, Result]) -> tuple[float, ...]:
        return (*(each[1].seconds_to(aim) for aim in reversed(aims)), each[1].least)

    ran = {name: result for name, result in results.items() if not result.refused}
    for name, result in sorted(ran.items(), key=order):
        times = [result.seconds_to(aim) for aim in aims]
        compiled = statistics.median(each.compiled for each in result.clocks)
        both = math.isfinite(times[-1]) and math.isfinite(first)
        rows.append((
            name,
            *(f"{seconds:.2f}" if math.isfinite(seconds) else "—" for seconds in times),
            f"{times[-1] / first:.1f}" if both else "",
            f"{result.least:.3g}",
            f"{compiled:.1f}" if compiled else "",
        ))  # fmt: skip
    absent = [f"{name}: {each.refused}" for name, each in results.items() if each.refused]
    return "\n".join([table(rows, right=range(1, len(rows[0])), width=110), *absent])


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Starts of each network.")] = 3,
    limit: Annotated[float, typer.Option(help="A factor on the time limits.")] = 1.0,
    only: Annotated[list[str] | None, typer.Option(help="Contestants.")] = None,
    problem: Annotated[
        list[str] | None, typer.Option(help="Problems, by a part of the name.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Race on one thread; medians over the starts, in CPU seconds."""
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for each in problems():
        if problem and not any(part in each.name for part in problem):
            continue
        each = replace(each, limit=limit * each.limit)
        names = [name for name in CONTESTANTS if not only or name in only]
        results = {name: race(each, name, seeds) for name in dict.fromkeys(["exact", *names])}
        least = min(result.least for result in results.values())
        aims = [factor * least for factor in AIMS]
        typer.echo(f"{each.name}, {len(each.x):,} samples: seconds to a loss of\n")
        typer.echo(f"{shown(results, aims)}\n")
        rows[each.name] = {
            "aims": aims, "limit": each.limit,
            "contestants": {name: result.record(aims) for name, result in results.items()},
        }  # fmt: skip
    if json_file:
        versions = {name: installed(name) for name in ("scipy", "torch-levenberg-marquardt")}
        record = {"environment": {**environment(), **versions}, "clock": "cpu", "problems": rows}
        json_file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
