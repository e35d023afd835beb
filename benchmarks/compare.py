"""Correctness before speed: what must hold before a time is worth reporting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from .compiled import FACTORS, Compiled
from .problems import Problem

# Rounding of one layer after another: relative errors near 1e-6 and 1e-14. Wrong results show at 1e-3.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class Check:
    """The largest relative error over the layers, and what is allowed."""

    name: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the error is within bounds; a NaN is not."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        verdict = "ok" if self.holds else "WRONG"
        return f"{verdict:<5}  {self.name}: relative error {self.error:.1e}, allowed {self.allowed:.0e}"


def relative_error(got: Tensor, expected: Tensor) -> float:
    """``‖got − expected‖ / ‖expected‖`` in float64; absolute if the expected tensor is zero."""
    got, expected = got.detach().double(), expected.detach().double()
    assert got.shape == expected.shape, f"expected {list(expected.shape)}, got {list(got.shape)}"
    scale = float(expected.norm())
    return float((got - expected).norm()) / (scale or 1.0)


def checks(problem: Problem) -> Iterator[Check]:
    """Our gradient against autograd, our factors against the reference and, where it is here, BackPACK."""
    exact = Compiled.of(problem, backend="reference", dtype=torch.float64)
    exact.run(*FACTORS)
    for dtype in (torch.float32, torch.float64):
        ours = Compiled.of(problem, dtype=dtype)
        ours.run(*FACTORS)
        name = str(dtype).removeprefix("torch.")
        yield Check(
            f"gradient, {name}, against autograd",
            largest(ours.gradients(), autograd_gradients(problem, dtype)),
            TOLERANCE[dtype],
        )
        yield Check(
            f"KFRA factors, {name}, against the reference backend",
            largest(pairs(ours), pairs(exact)),
            TOLERANCE[dtype],
        )
        if dtype == torch.float32 and find_spec("backpack") and problem.loss == "mse":
            yield Check(
                f"KFRA factors, {name}, against BackPACK",
                largest(without_bias(ours), backpack_factors(problem)),
                TOLERANCE[dtype],
            )


def largest(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error over tensors of the same names."""
    assert got.keys() == expected.keys(), f"expected {sorted(expected)}, got {sorted(got)}"
    errors = [relative_error(got[name], expected[name]) for name in expected]
    return float(torch.tensor(errors).max())  # unlike max(), never drops a NaN


def pairs(compiled: Compiled) -> dict[str, Tensor]:
    """Ḡ and Q of all layers under one name each."""
    factors = compiled.factors()
    return {
        f"{kind} {name}": m
        for name, gq in factors.items()
        for kind, m in zip("GQ", gq, strict=True)
    }


def without_bias(compiled: Compiled) -> dict[str, Tensor]:
    """The same, with Q without its homogeneous coordinate, as BackPACK has it."""
    return {name: m[:-1, :-1] if name.startswith("Q") else m for name, m in pairs(compiled).items()}


def autograd_gradients(problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """``∇W̄ = [∇W, ∇b]`` by layer, by autograd."""
    model, x = problem.fresh(dtype), problem.x.to(dtype)
    problem.torch_loss(model(x), x).backward()
    return {name: weight_gradient(layer) for name, layer in affine_layers(model).items()}


def weight_gradient(layer: nn.Linear) -> Tensor:
    """``[∇W, ∇b]`` as autograd left it in the layer."""
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    return torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)


def backpack_factors(problem: Problem) -> dict[str, Tensor]:
    """BackPACK's KFRA factors ``[Ḡ, E[a aᵀ]]`` of all layers."""
    from .contestants import backpack_backward

    model = problem.fresh()
    backpack_backward(problem, model, "KFRA")()
    return {
        f"{kind} {name}": m
        for name, layer in affine_layers(model).items()
        for kind, m in zip("GQ", layer.weight.kfra, strict=True)  # type: ignore[attr-defined]
    }


def affine_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a model by module path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
