"""Robust losses of residuals: ρ(r) that grows more slowly than ½ r², so that outliers count less.

============================  =============================  ================================
loss                          ρ(r), for a scale δ            weight of a residual far outside
============================  =============================  ================================
``mse``                       ``½ r²``                       1
``soft_l1``                   ``δ² (√(1 + (r/δ)²) − 1)``     ``δ / 2|r|``
``huber``                     ``½ r²``, ``δ(|r| − ½ δ)``     ``δ / 2|r|``
``geman_mcclure``             ``½ r² / (1 + (r/δ)²)``        ``(δ/r)⁶``
============================  =============================  ================================

What is trained is the signed root, ``s(r) = sign(r) √(2 ρ(r))``: ``½ s² = ρ``, so that objective and gradient
are those of ρ, and the Gauss-Newton weight ``s'² = ρ'²/2ρ`` is positive where ``ρ''`` is 0 or below, and a
residual far outside would have no curvature, or the wrong one. ``soft_l1``, also known as Charbonnier's, and
``huber`` are those of scipy's ``least_squares``, with δ as ``f_scale``; ``geman_mcclure`` forgets outliers,
and is not convex: begin with another one, or near the solution.

Huber, *Robust estimation of a location parameter*, 1964; Geman and McClure, *Statistical methods for
tomographic image reconstruction*, 1987; Black and Rangarajan, *On the unification of line processes, outlier
rejection, and robust statistics*, 1996.
"""

from __future__ import annotations

from collections.abc import Callable

from sympy import Abs, Expr, sqrt

from .primitives import number, select


def _soft_l1(r: Expr, scale: Expr) -> Expr:
    return r * sqrt(2 / (sqrt(1 + (r / scale) ** 2) + 1))


def _huber(r: Expr, scale: Expr) -> Expr:
    inverse = scale / Abs(r)
    return select(scale - Abs(r), r, r * sqrt(inverse * (2 - inverse)))


def _geman_mcclure(r: Expr, scale: Expr) -> Expr:
    return r / sqrt(1 + (r / scale) ** 2)


ROOTS: dict[str, Callable[[Expr, Expr], Expr]] = {
    "mse": lambda r, scale: r,
    "soft_l1": _soft_l1,
    "huber": _huber,
    "geman_mcclure": _geman_mcclure,
}
"""``s(r)`` by the loss's name, in forms without differences of close numbers."""


def signed_root(r: Expr, loss: str, scale: float) -> Expr:
    """``sign(r) √(2 ρ(r))``, an expression in what ``r`` is one in.

    >>> from sympy import Symbol
    >>> signed_root(Symbol("r", real=True), "geman_mcclure", 2)
    r/sqrt(r**2/4 + 1)
    """
    return ROOTS[loss](r, number(float(scale)))
