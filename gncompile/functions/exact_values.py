"""Values of a function to more digits than any float has: what emitted code is measured against.

Nothing of the compiler's derivation is used: sympy differentiates the declared expression as it stands, with
the textbook derivatives of the primitives, and mpmath evaluates. What cancels there is met by more digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import sympy
from mpmath import mpf
from sympy import Expr, Symbol

from .primitives import written_out

DIGITS = (40, 400, 800)
"""Tried in turn until two agree and are not zero: ``1 + e^-800`` is 1 in the first, not in the second."""
_AGREE = mpf("1e-24")
_NOTHING = mpf("1e-360")  # far below the smallest float64


class ExactFunction:
    """``expression`` in ``arguments`` at floats, and its values kept. Outside its domain it is NaN."""

    def __init__(self, expression: Expr, arguments: tuple[Symbol, ...]) -> None:
        modules = [_BOUNDED, "mpmath"]
        self._evaluate: Callable[..., Any] = sympy.lambdify(
            arguments, written_out(expression, _BOUNDED), modules, cse=True
        )
        self._known: dict[tuple[float, ...], mpf] = {}

    def __call__(self, *point: float) -> mpf:
        if point not in self._known:
            self._known[point] = self._compute(point)
        return self._known[point]

    def _compute(self, point: tuple[float, ...]) -> mpf:
        before = None
        for digits in DIGITS:
            with mpmath.workdps(digits):
                value = self._real(point)
                if not mpmath.isfinite(value):
                    return value
                if before is not None and value and abs(value - before) <= _AGREE * abs(value):
                    return value
                before = value
        return mpf(0) if abs(value) < _NOTHING else value

    def _real(self, point: tuple[float, ...]) -> mpf:
        try:
            value = self._evaluate(*map(mpf, point))
        except ZeroDivisionError:
            return mpmath.nan
        return mpmath.nan if isinstance(value, mpmath.mpc) else mpf(value)


def plain_slope(expression: Expr, argument: Symbol) -> Expr:
    """Its derivative by sympy; at a kink that of the branch taken there."""
    slope = expression.diff(argument).doit()
    return slope.replace(sympy.DiracDelta, lambda *_: sympy.Integer(0))


def _bounded(
    function: Callable[[mpf], mpf], largest: mpf, beyond: Callable[[mpf], mpf]
) -> Callable[[mpf], mpf]:
    return lambda x: function(x) if abs(x) < largest else beyond(x)


_HUGE = mpf("1e2000")  # the sixth power of the largest float64 is below
_FAR = mpf("1e100")  # e^-x is far below the smallest float64
_BOUNDED: dict[str, Callable[..., mpf]] = {
    "select": lambda condition, above, below: above if condition > 0 else below,
    "exp": _bounded(mpmath.exp, _HUGE, lambda x: mpmath.inf if x > 0 else mpf(0)),
    "cosh": _bounded(mpmath.cosh, _HUGE, lambda x: mpmath.inf),
    "sinh": _bounded(mpmath.sinh, _HUGE, lambda x: mpmath.inf * mpmath.sign(x)),
    "sigmoid": _bounded(lambda x: 1 / (1 + mpmath.exp(-x)), _FAR, lambda x: mpf(x > 0)),
    "softplus": _bounded(lambda x: mpmath.log1p(mpmath.exp(x)), _FAR, lambda x: max(x, mpf(0))),
    "erfc": _bounded(mpmath.erfc, _FAR, lambda x: 1 - mpmath.sign(x)),
    "sin": _bounded(mpmath.sin, _HUGE, lambda x: mpmath.nan),
    "cos": _bounded(mpmath.cos, _HUGE, lambda x: mpmath.nan),
    "tan": _bounded(mpmath.tan, _HUGE, lambda x: mpmath.nan),
}
"""What mpmath lacks, and what would fill the memory at the values of a tower of exponentials."""
