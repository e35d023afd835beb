"""The optimisers that can be compared, by name, each with the grid that its settings are searched on.

Ours have one setting, the defaults. Every other one is searched on its grid, whose first entry is what its
authors or its library recommend. The comparison is of training losses, so decoupled weight decay, which
raises them, is left at the library's value for AdamW only, which is named after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from ...errors import require_known
from ..compile import compile as compile_model
from .task import Pair, Task

Setting = Mapping[str, float | str]
Family = Literal["gauss-newton", "first-order", "preconditioned", "quasi-newton"]
DEFAULTS: Setting = {}
FEW_OUTPUTS = 32
"""KFLR passes a column back for every output; with more it is no contestant on a CPU."""
HISTORY = 100
ITERATIONS = 10


class Steps(Protocol):
    """A training in progress."""

    def batches(self, train: Iterable[Pair]) -> Iterator[Pair]:
        """Batches without end, from those of one pass."""

    def step(self, x: Tensor, y: Tensor, progress: float) -> int:
        """Train on one batch, ``progress`` in [0, 1) of the budget being spent; returns the updates made."""

    def settle(self, x: Tensor, y: Tensor) -> None:
        """Make sure, before the network is evaluated, that the last update is one to keep."""


@dataclass(frozen=True)
class Optimiser:
    """A contestant: ``start(task, model, seed, setting)`` begins to train ``model`` in place."""

    name: str
    family: Family
    start: Callable[[Task, nn.Module, int, Setting], Steps]
    grid: tuple[Setting, ...] = (DEFAULTS,)
    package: str | None = None
    """What has to be installed besides torch."""
    unsuited: Callable[[Task], str] = lambda task: ""
    """Why the optimiser is not run on a task; empty if it is."""

    def refusal(self, task: Task) -> str:
        """Why there is no run on ``task``: a missing package, or a task it is not made for; or empty."""
        if self.package and find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return self.unsuited(task)


# --- Ours ------------------------------------------------------------------------------------------


class TrainerSteps:
    """Steps of a :class:`~gncompile.training.trainer.Trainer` with its defaults.

    Losses are those of the model that ``fit`` would leave: with averaged parameters if these are better.
    """

    def __init__(self, method: str, task: Task, model: nn.Module, seed: int) -> None:
        options: dict[str, Any] = {**task.options, "method": method}
        example = task.data.train_x[:2]
        self.trainer = compile_model(model, task.loss, example, seed=seed, **options)

    def batches(self, train: Iterable[Pair]) -> Iterator[Pair]:
        return cast("Iterator[Pair]", self.trainer.gather(train, epochs=None))

    def step(self, x: Tensor, y: Tensor, progress: float) -> int:
        self.trainer.step(x, y)
        return 1

    def settle(self, x: Tensor, y: Tensor) -> None:
        self.trainer.settle(x, y)
        self.trainer.finish()


def ours(method: str, unsuited: Callable[[Task], str] = lambda task: "") -> Optimiser:
    """Our trainer by curvature method, with one setting for every task."""

    def start(task: Task, model: nn.Module, seed: int, setting: Setting) -> Steps:
        return TrainerSteps(method, task, model, seed)

    return Optimiser(method, "gauss-newton", start, unsuited=unsuited)


def _many_outputs(task: Task) -> str:
    if task.outputs <= FEW_OUTPUTS:
        return ""
    return (
        f"{task.outputs} outputs, and KFLR passes back a column for each; run up to {FEW_OUTPUTS}"
    )


# --- Gradients by autograd ---------------------------------------------------------------------------


class AutogradSteps:
    """Steps of ``torch.optim`` optimisers that share the parameters of ``model`` between them."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        setting: Setting,
        optimisers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.task, self.model, self.optimisers = task, model, optimisers
        self.rate = float(setting["lr"])
        self.cosine = setting.get("schedule") == "cosine"
        self.decayed = [(p, eta) for name, p in model.named_parameters() if (eta := task.l2(name))]

    def batches(self, train: Iterable[Pair]) -> Iterator[Pair]:
        while True:
            yield from train

    def step(self, x: Tensor, y: Tensor, progress: float) -> int:
        rate = self.rate * (0.5 * (1 + math.cos(math.pi * progress)) if self.cosine else 1)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad()
        self.objective(x, y).backward()
        for optimiser in self.optimisers:
            optimiser.step()
        return 1

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch with the task's L2 term."""
        value = self.task.objective(self.model(x), y)
        for parameter, eta in self.decayed:
            value = value + 0.5 * eta * parameter.square().sum()
        return value

    def settle(self, x: Tensor, y: Tensor) -> None:
        """Nothing: these optimisers take no step back."""


class LBFGSSteps(AutogradSteps):
    """L-BFGS with strong Wolfe line searches; one step makes up to :data:`ITERATIONS` iterations."""

    def __init__(self, task: Task, model: nn.Module, setting: Setting) -> None:
        optimiser = torch.optim.LBFGS(
            model.parameters(),
            max_iter=ITERATIONS,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
            # Stopping is the budget's business; with these at 0, only a failed line search ends a step.
            tolerance_grad=0,
            tolerance_change=0,
        )
        super().__init__(task, model, setting, [optimiser])

    def step(self, x: Tensor, y: Tensor, progress: float) -> int:
        optimiser = self.optimisers[0]
        before = self._iterations()

        def closure() -> float:
            optimiser.zero_grad()
            value = self.objective(x, y)
            value.backward()
            return float(value.detach())

        optimiser.step(closure)
        return self._iterations() - before

    def _iterations(self) -> int:
        state: dict[str, Any] = next(iter(self.optimisers[0].state.values()), {})
        return int(state.get("n_iter", 0))


def torch_optimiser(
    name: str,
    family: Family,
    grid: tuple[Setting, ...],
    make: Callable[[nn.Module], Sequence[torch.optim.Optimizer]],
    package: str | None = None,
) -> Optimiser:
    """A contestant that takes its gradients from autograd; ``lr`` and ``schedule`` come from the grid."""

    def start(task: Task, model: nn.Module, seed: int, setting: Setting) -> Steps:
        return AutogradSteps(task, model, setting, make(model))

    return Optimiser(name, family, start, grid, package)


def rates(*values: float, schedules: Sequence[str] = ("constant",)) -> tuple[Setting, ...]:
    """A grid of learning rates and schedules; put the recommended values first."""
    return tuple({"lr": rate, "schedule": each} for rate, each in product(values, schedules))


def _muon(model: nn.Module) -> Sequence[torch.optim.Optimizer]:
    """Muon for the matrices, and AdamW for the rest, as Muon's authors do it.

    Muon's updates are scaled to Adam's size, so that one learning rate serves both.
    """
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    muon = torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, *([torch.optim.AdamW(others, weight_decay=0.0)] if others else [])]


def _soap(model: nn.Module) -> Sequence[torch.optim.Optimizer]:
    optimisers = import_module("pytorch_optimizer")
    return [optimisers.SOAP(model.parameters(), weight_decay=0.0)]


def _shampoo(model: nn.Module) -> Sequence[torch.optim.Optimizer]:
    """Distributed Shampoo with RMSProp's step sizes, so that Adam's learning rates fit.

    Roots are computed anew every 20 steps: the package's 1000 suits trainings of many thousand steps.
    """
    optimisers = import_module("pytorch_optimizer")
    rmsprop = 3  # LayerWiseGrafting.RMSPROP; the package keeps the name to itself
    return [
        optimisers.ScalableShampoo(
            model.parameters(), preconditioning_compute_steps=20, graft_type=rmsprop
        )
    ]


def _lbfgs(task: Task, model: nn.Module, seed: int, setting: Setting) -> Steps:
    return LBFGSSteps(task, model, setting)


def _minibatches(task: Task) -> str:
    return "" if task.full_batch else "L-BFGS needs the full batch; this task has minibatches"


def _kfac_jax(task: Task, model: nn.Module, seed: int, setting: Setting) -> Steps:
    from .jax_kfac import JaxKfacSteps

    return JaxKfacSteps(task, model, seed, float(setting["damping"]))


def _unregistered(task: Task) -> str:
    known = task.loss in ("mse", "bce_with_logits", "cross_entropy")
    return "" if known else "kfac-jax has no distribution for this loss"


BOTH = ("constant", "cosine")
ADAM_GRID = rates(1e-3, 1e-4, 3e-4, 3e-3, 1e-2, schedules=BOTH)
SGD_GRID = rates(1e-2, 1e-4, 3e-4, 1e-3, 3e-3, 3e-2, 1e-1, 3e-1, schedules=BOTH)

OPTIMISERS: Mapping[str, Optimiser] = {
    each.name: each
    for each in (
        ours("kfra"),
        ours("kflr", _many_outputs),
        ours("kfac"),
        ours("kfac_rp"),
        ours("auto"),
        torch_optimiser(
            "adam", "first-order", ADAM_GRID, lambda model: [torch.optim.Adam(model.parameters())]
        ),
        torch_optimiser(
            "adamw", "first-order", ADAM_GRID, lambda model: [torch.optim.AdamW(model.parameters())]
        ),
        torch_optimiser(
            "sgd",
            "first-order",
            SGD_GRID,
            lambda model: [torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True)],
        ),
        torch_optimiser("muon", "preconditioned", rates(1e-3, 3e-4, 3e-3, 1e-2), _muon),
        torch_optimiser(
            "soap", "preconditioned", rates(3e-3, 1e-3, 1e-2), _soap, "pytorch_optimizer"
        ),
        torch_optimiser(
            "shampoo",
            "preconditioned",
            rates(1e-3, 3e-4, 3e-3, 1e-2),
            _shampoo,
            "pytorch_optimizer",
        ),
        Optimiser(
            "kfac-jax",
            "preconditioned",
            _kfac_jax,
            ({"damping": 1.0}, {"damping": 0.1}, {"damping": 0.01}),
            "kfac_jax",
            _unregistered,
        ),
        Optimiser("lbfgs", "quasi-newton", _lbfgs, rates(1.0), unsuited=_minibatches),
    )
}


def named(names: Sequence[str]) -> list[Optimiser]:
    """Optimisers by name; :class:`~gncompile.errors.CompileError` names the nearest to an unknown one."""
    for name in names:
        require_known("optimiser", name, OPTIMISERS, "some")
    return [OPTIMISERS[name] for name in dict.fromkeys(names)]
