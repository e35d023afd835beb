"""The formulas of the losses that textbooks name, in the output ``z`` and the target ``y``."""

from __future__ import annotations

import sympy

from ..functions.primitives import maximum, number, select, softplus
from .separable import OUTPUT, TARGET


def half_squared_error() -> sympy.Expr:
    """``½ (z - y)²``."""
    return (OUTPUT - TARGET) ** 2 / 2


def bernoulli_nll(positive: sympy.Expr | None = None) -> sympy.Expr:
    """``-log Bernoulli(y; σ(z)) = softplus(z) - y z``; with positive targets' terms times ``positive``."""
    if positive is None:
        return softplus(OUTPUT) - TARGET * OUTPUT
    return (1 - TARGET) * OUTPUT + (1 + (positive - 1) * TARGET) * softplus(-OUTPUT)


def poisson_nll(full: bool = False) -> sympy.Expr:
    """``-log Poisson(y; e^z) = e^z - y z`` up to a term in ``y``; by Stirling for ``y > 1`` if ``full``."""
    stirling = TARGET * sympy.log(TARGET) - TARGET + sympy.log(2 * sympy.pi * TARGET) / 2
    nll = sympy.exp(OUTPUT) - TARGET * OUTPUT
    return nll + select(TARGET - 1, stirling, sympy.Integer(0)) if full else nll


def gaussian_nll(least: float, full: bool) -> sympy.Expr:
    """``½ (log v + (z - y)²/v)`` for a variance ``v``, at least ``least``; ``½ log 2π`` more if ``full``."""
    v = maximum(sympy.Symbol("variance", positive=True), number(least))
    return (sympy.log(v) + (OUTPUT - TARGET) ** 2 / v + int(full) * sympy.log(2 * sympy.pi)) / 2


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
