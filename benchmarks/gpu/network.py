"""The stages on a whole network: gradients, curvature factors, and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from ..contestants import autograd, backpack_backward, torch_adam
from ..flops import gradient_flops, kfac_flops, kfra_flops
from ..problems import Problem
from .clock import Call, Clock
from .handwritten import SETTINGS, HandwrittenKFRA
from .ours import STEADY, Engine
from .rows import Entry, Left, Prepared

AUTOGRAD = "gradient, torch eager"
OUR_GRADIENT = "gradient, ours"
TORCH_ADAM = "Adam step, torch eager"
CAPTURED_ADAM = "Adam step, torch eager, captured"
COMPILED_ADAM = "Adam step, torch.compile max-autotune, captured"
OUR_ADAM = "Adam step, ours"
OUR_KFRA = "KFRA factors + gradient, ours"
OUR_KFAC = "KFAC factors + gradient, ours"
BACKPACK_KFRA = "KFRA factors + gradient, BackPACK"
BACKPACK_KFAC = "KFAC factors + gradient, BackPACK"
OUR_INVERSES = "inverse refresh alone, ours"
OUR_STEP = "KFRA step, default refresh, ours"
OUR_FRESH_STEP = "KFRA step, refresh every step, ours"
TORCH_BACKEND_STEP = "KFRA step, default refresh, ours, torch backend"
PLAIN_STEP = "KFRA step as written by hand, ours"
HAND_STEP = "KFRA step as written by hand, torch eager"

BASELINES = {
    "/eager": AUTOGRAD,
    "/compiled": COMPILED_ADAM,
    "/BackPACK": BACKPACK_KFRA,
    "/by hand": HAND_STEP,
}
"""Rows that the others are divided by, under these heads."""


@dataclass(frozen=True)
class Network:
    """One problem on one device."""

    problem: Problem
    clock: Clock
    engine: Engine
    compiles: bool = True
    """Whether ``torch.compile`` takes part, whose tuning takes minutes."""

    def gradients(self) -> Iterator[Entry]:
        """First order: the measure of everything."""
        problem, clock = self.problem, self.clock
        flops = gradient_flops(problem.widths, problem.batch)
        yield Entry(AUTOGRAD, lambda: Prepared(autograd(problem, problem.fresh()), flops))
        yield Entry(OUR_GRADIENT, lambda: self.engine.phases(problem, "kfra", "gradient"))
        yield Entry(TORCH_ADAM, lambda: Prepared(torch_adam(problem, problem.fresh()), flops))
        yield Entry(CAPTURED_ADAM, lambda: self._captured_adam(problem.fresh(), lambda f: f))
        yield Entry(COMPILED_ADAM, self._compiled_adam)
        yield Entry(OUR_ADAM, lambda: self.engine.step(problem, clock, method="adam"))

    def curvature(self) -> Iterator[Entry]:
        """Gradient and factors of every layer, on the whole batch."""
        problem, engine = self.problem, self.engine
        both = "gradient", "curvature"
        shape = problem.widths, problem.batch
        yield Entry(OUR_KFRA, lambda: engine.phases(problem, "kfra", *both))
        yield Entry(BACKPACK_KFRA, lambda: self._backpack("KFRA", kfra_flops(*shape)))
        yield Entry(OUR_KFAC, lambda: engine.phases(problem, "kfac", *both))
        yield Entry(BACKPACK_KFAC, lambda: self._backpack("KFAC", kfac_flops(*shape)))

    def steps(self) -> Iterator[Entry]:
        """Whole steps, on cycles of 20 that choose the damping of the factors once."""
        problem, clock, engine = self.problem, self.clock, self.engine
        torch_engine = Engine("torch", engine.precision)
        yield Entry(OUR_INVERSES, lambda: engine.phases(problem, "kfra", "invert"))
        yield Entry(OUR_STEP, lambda: engine.step(problem, clock, **STEADY))
        yield Entry(OUR_FRESH_STEP, lambda: engine.step(problem, clock, refresh_every=1, **STEADY))
        yield Entry(TORCH_BACKEND_STEP, lambda: torch_engine.step(problem, clock, **STEADY))
        yield Entry(PLAIN_STEP, lambda: engine.step(problem, clock, **SETTINGS))
        yield Entry(HAND_STEP, self._by_hand)

    def _captured_adam(
        self, model: nn.Module, compiled: Callable[[Callable], Callable]
    ) -> Prepared:
        """Forward, backward and the fused update as one graph; gradients live in the graph's memory."""
        problem = self.problem
        x, loss = problem.x, problem.torch_loss
        on_device = self.clock.is_cuda
        optimiser = torch.optim.Adam(
            model.parameters(), fused=on_device or None, capturable=on_device
        )
        forward = compiled(lambda given: loss(model(given), given))

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            forward(x).backward()
            optimiser.step()

        flops = gradient_flops(problem.widths, problem.batch)
        return Prepared(self.clock.captured(step, warm_up=5), flops)

    def _compiled_adam(self) -> Prepared:
        if not self.compiles:
            raise Left("torch.compile was not asked for")
        if not self.clock.is_cuda:
            raise Left("torch.compile is compared on CUDA devices only")
        # Without inductor's own graphs: the whole step is captured as one.
        mode = "max-autotune-no-cudagraphs"
        return self._captured_adam(
            self.problem.fresh(), lambda f: torch.compile(f, mode=mode, dynamic=False)
        )

    def _backpack(self, extension: str, flops: float) -> Prepared:
        if find_spec("backpack") is None:
            raise Left("BackPACK is not installed")
        problem = self.problem
        return Prepared(backpack_backward(problem, problem.fresh(), extension), flops)

    def _by_hand(self) -> Prepared:
        problem = self.problem
        steps = HandwrittenKFRA(problem.fresh())
        call: Call = lambda: steps.step(problem.x, problem.x)  # noqa: E731
        flops = self.engine.step(problem, self.clock, **SETTINGS).flops
        return Prepared(call, flops, cycle=20, warm_up=6)
