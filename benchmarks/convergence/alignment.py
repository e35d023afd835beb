"""How well each method's update agrees with the exact damped Gauss-Newton update.

At several moments of a training, for one batch and a damping λ: the cosine between ``d = -(G + λI)⁻¹ ∇``,
by conjugate gradients in float64 on products ``J^T H J v`` of ``torch.func``, and the update that a trainer
makes of the same batch with freshly computed factors.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp

import gncompile
from gncompile.app.comparison.optimisers import FEW_OUTPUTS
from gncompile.app.comparison.task import Task
from gncompile.base.files import atomic_path, atomic_write
from gncompile.base.tables import table
from gncompile.data import Batches
from gncompile.errors import CompileError

METHODS = ("kfra", "kflr", "kfac", "kfac_rp")
SAMPLED = ("kfac", "kfac_rp")
DRAWS = 3
TOLERANCE = 1e-3
"""Residual of the conjugate gradients relative to the gradient: cosines then are right to about 0.01."""
ITERATIONS = 600
WHOLE_BATCH = {"factor_share": 1.0, "quadratic_share": 1.0, "layer_steps": 0}
"""Options for a step with nothing but the method's factors in it: all of the batch, one step size."""

Vectors = dict[str, Tensor]
Map = Callable[[Vectors], Vectors]


@dataclass(frozen=True)
class Alignment:
    """The cosine of one method's update, or of the negative gradient; for a method that samples, the
    median over :data:`DRAWS`."""

    task: str
    updates: int
    damping: float
    method: str
    cosine: float
    iterations: int
    """Of the conjugate gradients; at :data:`ITERATIONS` they were stopped."""
    residual: float
    """That of the exact update, relative to the gradient."""


def measure(
    task: Task,
    moments: Sequence[int] = (0, 5, 20, 50),
    dampings: Sequence[float] = (0.1, 0.001),
    batch_size: int = 500,
    seed: int = 0,
) -> list[Alignment]:
    """Train by KFRA with the defaults; at each of ``moments`` (updates made) measure all methods."""
    model, data = task.build(seed), task.data
    options: dict[str, Any] = dict(task.options)
    trainer = gncompile.compile(model, task.loss, data.train_x[:2], seed=seed, **options)
    batches = Batches(data.train_x, data.train_y, task.batch_size, seed)
    x, y = data.train_x[:batch_size].double(), data.train_y[:batch_size]
    y = y.double() if y.is_floating_point() else y
    methods = first_steps(task, model, x)
    found: list[Alignment] = []
    for moment in sorted(moments):
        while trainer.updates < moment:
            trainer.step(*batches.next())
        exact = copy.deepcopy(model).double()
        for damping in dampings:
            found += _at(task, methods, exact, x, y, moment, damping)
    return found


def _at(
    task: Task,
    methods: Mapping[str, FirstStep],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    moment: int,
    damping: float,
) -> list[Alignment]:
    gradient = gradients(model, task.objective, x, y)
    updates: dict[str, list[Vectors]] = {"gradient": [{name: -g for name, g in gradient.items()}]}
    for method, step in methods.items():
        seeds = range(DRAWS if method in SAMPLED else 1)
        updates[method] = [step.update(model, x, y, damping, seed) for seed in seeds]
    product = gauss_newton(model, task.objective, x, y)
    # Without a preconditioner: KFRA's factored inverse made iterations four times as long and hardly fewer.
    newton, iterations = conjugate_gradients(product, gradient, damping)
    rest = add(add(product(newton), newton, damping), gradient, 1.0)
    residual = (dot(rest, rest) / dot(gradient, gradient)) ** 0.5
    return [
        Alignment(
            task.name, moment, damping, method,
            statistics.median(cosine(newton, each) for each in draws), iterations, residual,
        )
        for method, draws in updates.items()
    ]  # fmt: skip


# --- The methods' updates --------------------------------------------------------------------------------


class FirstStep:
    """A trainer, compiled once, that makes a first step of a training from any parameters."""

    def __init__(self, task: Task, model: nn.Module, x: Tensor, method: str) -> None:
        self._model = copy.deepcopy(model).double()
        options: dict[str, Any] = {**task.options, **WHOLE_BATCH}
        self._trainer = gncompile.compile(self._model, task.loss, x[:2], method, **options)
        self._fresh = copy.deepcopy(self._trainer.state_dict())

    def update(
        self, model: nn.Module, x: Tensor, y: Tensor, damping: float, seed: int = 0
    ) -> Vectors:
        """The change of the parameters in a first step from those of ``model``, at λ = γ² = ``damping``."""
        state = copy.deepcopy(self._fresh)
        state["model"] = dict(model.state_dict())
        state["states"]["damping"].fill_(damping)
        state["states"]["factor_damping"].fill_(damping**0.5)
        state["generator"]["state"] = torch.Generator().manual_seed(seed).get_state()
        self._trainer.load_state_dict(state)
        self._trainer.step(x, y)
        before = dict(model.named_parameters())
        return {
            name: p.detach() - before[name].detach() for name, p in self._model.named_parameters()
        }


def first_steps(task: Task, model: nn.Module, x: Tensor) -> dict[str, FirstStep]:
    """All methods that the task admits: KFLR with few outputs only, KFAC for a loss to draw targets from."""
    found: dict[str, FirstStep] = {}
    for method in METHODS:
        if method == "kflr" and task.outputs > FEW_OUTPUTS:
            continue
        try:
            found[method] = FirstStep(task, model, x, method)
        except CompileError:
            if method != "kfac":
                raise
    return found


# --- The exact update ------------------------------------------------------------------------------------


def gradients(
    model: nn.Module, objective: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Vectors:
    """The objective's gradient by parameter name."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return dict(grad(lambda own: objective(functional_call(model, own, (x,)), y))(parameters))


def gauss_newton(
    model: nn.Module, objective: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Map:
    """``v → J^T H J v`` with ``H`` the Hessian of the objective in the outputs, exact for any loss."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def network(own: Mapping[str, Tensor]) -> Tensor:
        return functional_call(model, dict(own), (x,))

    outputs, pull_back = vjp(network, parameters)[:2]
    slope = grad(lambda z: objective(z, y))

    def product(v: Vectors) -> Vectors:
        tangent = jvp(network, (parameters,), (v,))[1]
        curved = jvp(slope, (outputs,), (tangent,))[1]
        return dict(pull_back(curved)[0])

    return product


def conjugate_gradients(product: Map, gradient: Vectors, damping: float) -> tuple[Vectors, int]:
    """``-(G + λI)⁻¹ ∇`` to a residual of TOLERANCE of the gradient, and the iterations it took.

    After :data:`ITERATIONS` the solution is taken as it is. Raises :class:`~gncompile.errors.CompileError`
    where ``G + λI`` is not positive.
    """
    solution = {name: torch.zeros_like(g) for name, g in gradient.items()}
    residual = {name: -g for name, g in gradient.items()}
    direction, squared = residual, dot(residual, residual)
    goal = TOLERANCE**2 * squared
    for iteration in range(ITERATIONS):
        if squared <= goal:
            return solution, iteration
        bent = add(product(direction), direction, damping)
        curvature = dot(direction, bent)
        if curvature <= 0:
            raise CompileError(
                "the Gauss-Newton matrix has a negative eigenvalue: the loss is not convex",
                instead="measure the alignment of a problem with a convex loss",
            )
        size = squared / curvature
        solution = add(solution, direction, size)
        residual = add(residual, bent, -size)
        before, squared = squared, dot(residual, residual)
        direction = add(residual, direction, squared / before)
    return solution, ITERATIONS


def dot(a: Vectors, b: Vectors) -> float:
    """``aᵀb`` over all parameters."""
    return float(sum((a[name] * b[name]).sum() for name in a))


def add(a: Vectors, b: Vectors, factor: float) -> Vectors:
    """``a + factor · b``."""
    return {name: a[name] + factor * b[name] for name in a}


def cosine(a: Vectors, b: Vectors) -> float:
    """``aᵀb / (‖a‖ ‖b‖)``; 0 where one is zero, as an update that was refused."""
    norms = (dot(a, a) * dot(b, b)) ** 0.5
    return dot(a, b) / norms if norms else 0.0


# --- What is written ---------------------------------------------------------------------------------


def text(found: Sequence[Alignment]) -> str:
    """Cosines, a row for each moment and damping."""
    methods = list(dict.fromkeys(each.method for each in found))
    cells: dict[tuple[str, int, float], dict[str, Alignment]] = {}
    for each in found:
        cells.setdefault((each.task, each.updates, each.damping), {})[each.method] = each
    rows = [("task", "updates", "damping", *methods, "CG iterations", "residual")]
    for (task, updates, damping), by_method in cells.items():
        cosines = [f"{by_method[m].cosine:.3f}" if m in by_method else "" for m in methods]
        solved = next(iter(by_method.values()))
        exact = (str(solved.iterations), f"{solved.residual:.1g}")
        rows.append((task, str(updates), f"{damping:g}", *cosines, *exact))
    return table(rows, right=range(1, len(rows[0])))


def write(found: Sequence[Alignment], folder: Path) -> Path:
    """``alignment.json`` and, with matplotlib, ``alignment.png``: a panel for each task and damping."""
    records = [asdict(each) for each in found]
    path = atomic_write(folder / "alignment.json", json.dumps(records, indent=2) + "\n")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return path
    panels = list(dict.fromkeys((each.task, each.damping) for each in found))
    figure = Figure(figsize=(4 * len(panels), 3.4), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (task, damping) in zip(axes, panels, strict=True):
        own = [each for each in found if (each.task, each.damping) == (task, damping)]
        for number, method in enumerate(("gradient", *METHODS)):
            points = [(each.updates, each.cosine) for each in own if each.method == method]
            if points:
                colour = f"C{number}"
                panel.plot(*zip(*points, strict=True), "o-", color=colour, label=method, ms=4)
        panel.set(title=f"{task}, λ = {damping:g}", xlabel="updates", ylim=(0, 1.02))
        panel.grid(visible=True, alpha=0.3)
        panel.legend(fontsize=8)
    axes[0].set_ylabel("cosine with the exact update")
    with atomic_path(folder / "alignment.png") as temporary:
        figure.savefig(temporary)
    return path
