"""What is timed: ours, autograd's and, where it is installed, BackPACK's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

import gncompile
from gncompile.base.settings import Settings
from gncompile.program.costs import CostModel
from gncompile.program.phases import mean_runs
from gncompile.program.step_program import StepProgram
from gncompile.program.timetable import cycle, settled
from gncompile.training.trainer import Trainer

from .compiled import FACTORS, Compiled
from .flops import gradient_flops, kfac_flops, kfra_flops
from .problems import Problem
from .timing import Contestant

AUTOGRAD = "forward + backward, autograd"
OUR_GRADIENT = "gradient, ours"
OUR_KFRA = "KFRA factors + gradient, ours"
BACKPACK_KFRA = "KFRA factors + gradient, BackPACK"
OUR_STEP = "KFRA full step, default refresh, ours"
OUR_FRESH_STEP = "KFRA full step, refreshing each step, ours"
OUR_KFAC = "KFAC factors + gradient, ours"
BACKPACK_KFAC = "KFAC factors + gradient, BackPACK"
TORCH_ADAM = "Adam step, torch"
OUR_ADAM = "Adam step, ours"


def contestants(problem: Problem) -> Iterator[Contestant]:
    """Everything this environment can run, in the order of the table."""
    widths, batch = problem.widths, problem.batch
    kfra, kfac = Compiled.of(problem, "kfra"), Compiled.of(problem, "kfac")
    plain = gradient_flops(widths, batch)

    yield Contestant(AUTOGRAD, autograd(problem, problem.fresh()), plain)
    yield Contestant(OUR_GRADIENT, lambda: kfra.run("gradient"), kfra.flops("gradient"))
    yield Contestant(OUR_KFRA, lambda: kfra.run(*FACTORS), kfra.flops(*FACTORS))
    # BackPACK differentiates BCE with logits for one output only, so with that loss it stays out.
    has_backpack = find_spec("backpack") is not None and problem.loss == "mse"
    if has_backpack:
        call = backpack_backward(problem, problem.fresh(), "KFRA")
        yield Contestant(BACKPACK_KFRA, call, kfra_flops(widths, batch))
    yield full_step(OUR_STEP, problem)
    yield full_step(OUR_FRESH_STEP, problem, refresh_every=1)
    yield Contestant(OUR_KFAC, lambda: kfac.run(*FACTORS), kfac.flops(*FACTORS))
    if has_backpack:
        call = backpack_backward(problem, problem.fresh(), "KFAC")
        yield Contestant(BACKPACK_KFAC, call, kfac_flops(widths, batch))
    yield Contestant(TORCH_ADAM, torch_adam(problem, problem.fresh()), plain)
    adam = trainer(problem, method="adam")
    yield Contestant(OUR_ADAM, lambda: adam.step(*problem.pair()), plain)


def autograd(problem: Problem, model: nn.Module) -> Callable[[], None]:
    """Forward and backward by torch."""
    loss, x = problem.torch_loss, problem.x

    def call() -> None:
        model.zero_grad(set_to_none=True)
        loss(model(x), x).backward()

    return call


def torch_adam(problem: Problem, model: nn.Module) -> Callable[[], None]:
    """Forward, backward and ``torch.optim.Adam`` with its fused update."""
    optimiser = torch.optim.Adam(model.parameters(), lr=Settings().learning_rate, fused=True)
    gradient = autograd(problem, model)

    def call() -> None:
        gradient()
        optimiser.step()

    return call


def backpack_backward(problem: Problem, model: nn.Module, extension: str) -> Callable[[], None]:
    """Forward, then backward with a curvature extension of BackPACK (``"KFRA"``, ``"KFAC"``)."""
    # The batch needs no gradient, so the hooks fire at the modules' outputs, which is enough here.
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    import backpack
    from backpack import extensions

    assert isinstance(problem.torch_loss, nn.Module)
    extended, loss = backpack.extend(model), backpack.extend(problem.torch_loss)
    curvature, x = getattr(extensions, extension), problem.x

    def call() -> None:
        extended.zero_grad(set_to_none=True)
        with backpack.backpack(curvature()):
            loss(extended(x), x).backward()

    return call


def trainer(problem: Problem, **options: Any) -> Trainer:
    """A trainer on a copy of the problem's model."""
    return gncompile.compile(problem.fresh(), problem.declared_loss, problem.x, **options)


def full_step(name: str, problem: Problem, **options: Any) -> Contestant:
    """``Trainer.step``, measured over a whole cycle of refreshes and damping choices.

    The first steps refresh more often, so they are left to the warm-up.
    """
    ours = trainer(problem, **options)
    settings = ours.settings
    return Contestant(
        name,
        lambda: ours.step(*problem.pair()),
        step_flops(ours.program, settings, problem.batch),
        cycle=cycle(settings),
        warm_up=settled(settings),
    )


def step_flops(program: StepProgram, settings: Settings, batch: int) -> float:
    """Flops of a mean step."""
    costs = CostModel(program, batch, rows=settings.rows(batch))
    runs = mean_runs(settings, program.step).items()
    return sum(costs.phase(name).flops * times for name, times in runs)
