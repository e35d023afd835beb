"""Where a function of one variable is looked at: over its domain, at its kinks, at zero and far out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import mpmath
import sympy
from sympy import Expr, Symbol

from .precise import Number, precise_function, real_value
from .primitives import kinked

Domain = tuple[float, float]

MAGNITUDES = (0.013, 0.11, 0.5, 1.07, 2.3, 6.1, 19.7, 48.9, 101.0, 997.0)
"""Steps that share no period with usual functions; the last are beyond e^x of float32 and of float64."""
FRACTIONS = (0.003, 0.05, 0.21, 0.37, 0.5, 0.63, 0.81, 0.95, 0.997)
KINK_OFFSET = 1e-6


def probe_points(domain: Domain, kinks: tuple[Number, ...]) -> list[Number]:
    """Deterministic points inside an open ``domain``, two beside every kink included, kinks excluded."""
    low, high = domain
    points = [0.0, *MAGNITUDES, *(-m for m in MAGNITUDES)]
    if math.isfinite(low) and math.isfinite(high):
        points += [low + (high - low) * t for t in FRACTIONS]
    elif math.isfinite(low):
        points += [low + m for m in MAGNITUDES]
    elif math.isfinite(high):
        points += [high - m for m in MAGNITUDES]
    found = [mpmath.mpf(p) for p in points]
    for kink in kinks:
        offset = KINK_OFFSET * (1 + abs(kink))
        found += [kink - offset, kink + offset]
    near = [k for k in kinks if any(abs(p - k) < KINK_OFFSET / 2 for p in found)]
    clear = [p for p in found if not any(abs(p - k) < KINK_OFFSET / 2 for k in near)]
    return sorted({p for p in clear if low < p < high})


def possible_kinks(expression: sympy.Basic, argument: Symbol, domain: Domain) -> tuple[Number, ...]:
    """Points of ``domain`` where a branch changes: zeros of the conditions of ``select``, ``abs``, ``sign``.

    A linear condition is solved; of others the sign changes on a grid are found by bisection.
    """
    conditions = {part.args[0] for part in kinked(expression)}
    low, high = domain
    found: set[Number] = set()
    for condition in conditions:
        for zero in _zeros(condition, argument, domain):
            if low < zero < high and all(abs(zero - other) > 1e-12 for other in found):
                found.add(zero)
    return tuple(sorted(found))


def _zeros(condition: Expr, argument: Symbol, domain: Domain) -> Iterator[Number]:
    if condition.is_polynomial(argument) and sympy.degree(condition, argument) == 1:
        slope, shift = sympy.Poly(condition, argument).all_coeffs()
        yield mpmath.mpmathify((-shift / slope).evalf(mpmath.mp.dps))
        return
    function = precise_function(condition, (argument,))
    grid = sorted({*probe_points(domain, ()), *dense(domain)})
    values = [real_value(function, x) for x in grid]
    for (a, fa), (b, fb) in itertools.pairwise(zip(grid, values, strict=True)):
        if fa is None or fb is None:
            continue
        if fa == 0:
            yield a
        elif fa * fb < 0:
            for _ in range(70):
                middle = (a + b) / 2
                value = real_value(function, middle)
                a, b = (middle, b) if value is not None and value * fa > 0 else (a, middle)
            yield b


def dense(domain: Domain) -> list[Number]:
    """Seventy points within ±10 or, for a bounded domain, across it."""
    low, high = max(domain[0], -10.0), min(domain[1], 10.0)
    count = 71
    return (
        [mpmath.mpf(low + (high - low) * (i + 0.37) / count) for i in range(count)]
        if low < high
        else []
    )
