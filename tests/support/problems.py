"""A random network with a loss and a batch: what a property test draws, in one printable line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from architectures import (
    ACTIVATIONS,
    Act,
    Chain,
    Linear,
    build,
    calibrate,
    chain_text,
    networks,
    normal,
    width_after,
)
from hypothesis import strategies as st
from torch import Tensor, nn


def _counts(generator: torch.Generator, n: int, k: int) -> Tensor:
    return torch.poisson(torch.full((n, k), 2.0, dtype=torch.float64), generator=generator)


def _classes(generator: torch.Generator, n: int, k: int) -> Tensor:
    return torch.randint(k, (n,), generator=generator)


def _distributions(generator: torch.Generator, n: int, k: int) -> Tensor:
    return normal(generator, n, k).softmax(dim=-1)


def _fractions(generator: torch.Generator, n: int, k: int) -> Tensor:
    return torch.rand(n, k, generator=generator, dtype=torch.float64)


def _reals(generator: torch.Generator, n: int, k: int) -> Tensor:
    return 2.0 * normal(generator, n, k)


class LossSpec(NamedTuple):
    """What is handed to gncompile as the loss, and targets for it."""

    argument: str | nn.Module
    targets: Callable[[torch.Generator, int, int], Tensor]
    least_outputs: int = 1


POISSON = "exp(z) - y*z"
LOSSES: dict[str, LossSpec] = {
    "mse": LossSpec("mse", _reals),
    "bce_with_logits": LossSpec("bce_with_logits", _fractions),
    "cross_entropy": LossSpec("cross_entropy", _classes, 2),
    "cross_entropy(soft)": LossSpec("cross_entropy", _distributions, 2),
    "poisson": LossSpec(POISSON, _counts),
    "huber": LossSpec("huber", _reals),
    "MSELoss": LossSpec(nn.MSELoss(), _reals),
    "BCEWithLogitsLoss": LossSpec(nn.BCEWithLogitsLoss(), _fractions),
    "CrossEntropyLoss": LossSpec(nn.CrossEntropyLoss(), _classes, 2),
    "CrossEntropyLoss(soft)": LossSpec(nn.CrossEntropyLoss(), _distributions, 2),
    "HuberLoss": LossSpec(nn.HuberLoss(delta=0.7), _reals),
    "PoissonNLLLoss": LossSpec(nn.PoissonNLLLoss(), _counts),
}
SUMMED_LOSSES: dict[str, LossSpec] = {
    "MSELoss(sum)": LossSpec(nn.MSELoss(reduction="sum"), _reals),
    "CrossEntropyLoss(sum)": LossSpec(nn.CrossEntropyLoss(reduction="sum"), _classes, 2),
}
SQUARED = ("mse", "MSELoss")
EVERY_LOSS = {**LOSSES, **SUMMED_LOSSES}


class Problem(NamedTuple):
    """A model, a loss as gncompile takes it, and a batch."""

    model: nn.Module
    loss: str | nn.Module
    x: Tensor
    y: Tensor


@dataclass(frozen=True, repr=False)
class Case:
    """Everything that a property test needs, in one printable line."""

    width: int
    chain: Chain
    loss: str
    batch: int
    seed: int

    def __repr__(self) -> str:
        net = f"{self.width} > {chain_text(self.chain)}"
        return f"<{net}; {self.loss}; N={self.batch}; seed={self.seed}>"

    def build(self) -> Problem:
        """The model with calibrated seeded weights, and a seeded batch."""
        generator = torch.Generator().manual_seed(self.seed)
        model = build(self.chain, self.width, generator)
        calibrate(model, normal(generator, 64, self.width))
        loss = EVERY_LOSS[self.loss]
        x = normal(generator, self.batch, self.width)
        y = loss.targets(generator, self.batch, width_after(self.chain, self.width))
        return Problem(model, loss.argument, x, y)


def chain_of(case: Case) -> tuple[Problem, list[nn.Linear], list[Callable[[Tensor], Tensor]]]:
    """A chain's problem, its layers, and the function after each layer (or the identity)."""
    problem = case.build()
    functions: list[Callable[[Tensor], Tensor]] = []
    for op in case.chain:
        if isinstance(op, Linear):
            functions.append(ACTIVATIONS["identity"])
        elif isinstance(op, Act):
            functions[-1] = ACTIVATIONS[op.name]
    return problem, [m for m in problem.model.modules() if isinstance(m, nn.Linear)], functions


BATCHES = st.one_of(st.integers(1, 6), st.sampled_from((7, 16, 31, 32, 33)))


@st.composite
def cases(
    draw: st.DrawFn,
    nets: st.SearchStrategy[tuple[int, Chain]] | None = None,
    losses: Sequence[str] = tuple(LOSSES),
    batches: st.SearchStrategy[int] = BATCHES,
) -> Case:
    """A network, a loss that fits its output, a batch size and a seed."""
    width, chain = draw(networks() if nets is None else nets)
    outputs = width_after(chain, width)
    fitting = [name for name in losses if EVERY_LOSS[name].least_outputs <= outputs]
    loss = draw(st.sampled_from(fitting))
    return Case(width, chain, loss, draw(batches), draw(st.integers(0, 2**16)))
