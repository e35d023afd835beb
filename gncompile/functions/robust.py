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

import torch
from sympy import Abs, Expr, sign, sqrt

from .primitives import number, select

Root = Callable[[Expr, Expr], Expr]


def scales(dtype: torch.dtype) -> tuple[float, float]:
    """The least and the largest scale in a dtype, whose fourth powers it holds: slopes have third powers."""
    numbers = torch.finfo(dtype)
    return numbers.tiny**0.25, numbers.max**0.25


def _switched(inside: Root, outside: Root) -> Root:
    """``inside`` where ``|r| < δ``, else ``outside``: made of ``r/δ`` and ``δ/r``, neither overflows there.

    Where it is not taken, a branch is computed at δ, so that it gives slopes by autograd no NaN; compiled
    code has nothing of that, since a condition within its own branch is settled.
    """

    def root(r: Expr, scale: Expr) -> Expr:
        margin = scale - Abs(r)
        near, far = select(margin, r, scale), select(margin, scale, r)
        return select(margin, inside(near, scale), outside(far, scale))

    return root


def _soft_l1_outside(r: Expr, scale: Expr) -> Expr:
    q = scale / Abs(r)
    return sign(r) * sqrt(2 * scale) * sqrt(Abs(r)) / sqrt(sqrt(1 + q**2) + q)


ROOTS: dict[str, Root] = {
    "mse": lambda r, scale: r,
    "soft_l1": _switched(
        lambda r, scale: r * sqrt(2 / (sqrt(1 + (r / scale) ** 2) + 1)), _soft_l1_outside
    ),
    "huber": _switched(
        lambda r, scale: r,
        lambda r, scale: sign(r) * sqrt(2 * scale) * sqrt(Abs(r) - scale / 2),
    ),
    "geman_mcclure": _switched(
        lambda r, scale: r / sqrt(1 + (r / scale) ** 2),
        lambda r, scale: sign(r) * scale / sqrt(1 + (scale / r) ** 2),
    ),
}
"""``s(r)`` by the loss's name, in forms without differences of close numbers, which hold, and whose slopes
hold, up to the largest float."""


def signed_root(r: Expr, loss: str, scale: float) -> Expr:
    """``sign(r) √(2 ρ(r))``, an expression in what ``r`` is one in.

    >>> from sympy import Symbol
    >>> from .stable_forms import stable
    >>> stable(signed_root(Symbol("r", real=True), "huber", 2))
    select(2 - Abs(r), r, 2*sqrt(Abs(r) - 1)*sign(r))
    """
    return ROOTS[loss](r, number(float(scale)))
