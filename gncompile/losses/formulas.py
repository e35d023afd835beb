"""The formulas of the losses that textbooks name, in the output ``z`` and the target ``y``."""

from __future__ import annotations

import sympy

from ..functions.primitives import number, select, softplus
from .loss_types import OUTPUT, TARGET


def half_squared_error() -> sympy.Expr:
    """``½ (z - y)²``."""
    return (OUTPUT - TARGET) ** 2 / 2


def bernoulli_nll() -> sympy.Expr:
    """``-log Bernoulli(y; σ(z)) = softplus(z) - y z``."""
    return softplus(OUTPUT) - TARGET * OUTPUT


def poisson_nll() -> sympy.Expr:
    """``-log Poisson(y; e^z) = e^z - y z`` up to a term in ``y``."""
    return sympy.exp(OUTPUT) - TARGET * OUTPUT


def soft_margin() -> sympy.Expr:
    """``log(1 + e^(-y z))`` for targets ±1."""
    return softplus(-TARGET * OUTPUT)


def huber(delta: float = 1.0) -> sympy.Expr:
    """``½ d²`` where ``|d| < δ``, else ``δ (|d| - ½ δ)``, with ``d = z - y``."""
    distance, threshold = sympy.Abs(OUTPUT - TARGET), number(delta)
    linear = threshold * (distance - threshold / 2)
    return select(threshold - distance, half_squared_error(), linear)


def smooth_l1(beta: float = 1.0) -> sympy.Expr:
    """``d²/(2β)`` where ``|d| < β``, else ``|d| - ½ β``."""
    distance, threshold = sympy.Abs(OUTPUT - TARGET), number(beta)
    return select(threshold - distance, half_squared_error() / threshold, distance - threshold / 2)


def log_cosh(distance: sympy.Expr) -> sympy.Expr:
    """``log cosh d = softplus(2d) - d - log 2``."""
    return softplus(2 * distance) - distance - sympy.log(2)
