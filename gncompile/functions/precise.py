"""Values of expressions in high precision, to check what is derived against what was declared.

Nothing here knows a derivative or a rewriting rule: each primitive is its definition, evaluated by mpmath.
Towers of exponentials are cut off, for their exact value would fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import sympy

from .primitives import written_out

Number = Any  # mpmath's mpf or mpc; mpmath carries no types
Function = Callable[..., Number]

MAX_EXPONENT = 1e4
"""Beyond ``e^±10000`` a value counts as infinite or zero: no float comes near."""


def precise_function(
    expression: sympy.Expr | sympy.Tuple, symbols: Sequence[sympy.Symbol]
) -> Function:
    """``expression``, or several, as a function of ``symbols`` in mpmath's working precision."""
    bounded = written_out(expression, DEFINITIONS).replace(
        _grows, lambda power: _power(*power.args)
    )
    modules = [DEFINITIONS, "mpmath"]
    function: Function = sympy.lambdify(symbols, bounded, modules, cse=True)
    return function


def real_value(function: Function, *at: float | Number) -> Number | None:
    """The real value at a point, ±inf beyond any float's range, or None where there is none."""
    try:
        value = function(*map(mpmath.mpf, at))
    except (ZeroDivisionError, ValueError, OverflowError, TypeError):
        return None  # a TypeError: complex numbers have no order
    return None if isinstance(value, mpmath.mpc) or mpmath.isnan(value) else mpmath.mpf(value)


_power = sympy.Function("bounded_power")


def _grows(e: sympy.Expr) -> bool:
    return isinstance(e, sympy.Pow) and not e.exp.is_number


def _bounded_power(base: Number, exponent: Number) -> Number:
    if base > 0:
        return _bounded_exp(exponent * mpmath.log(base))
    return mpmath.power(base, exponent) if abs(exponent) < MAX_EXPONENT else mpmath.nan


def _sigmoid(x: Number) -> Number:
    return 1 / (1 + _bounded_exp(-x))


def _bounded_exp(x: Number) -> Number:
    """``e^x``, or its limits: without a bound ``exp(exp(exp(z)))`` would fill the memory."""
    if abs(x) < MAX_EXPONENT:
        return mpmath.exp(x)
    return mpmath.inf if x > 0 else mpmath.mpf(0)


def _bounded_periodic(function: Callable[[Number], Number]) -> Callable[[Number], Number]:
    """Undefined far out: reducing an argument of a million digits would take that many digits of π."""
    return lambda x: function(x) if abs(x) < 1e40 else mpmath.nan


def _select(condition: Number, above: Number, below: Number) -> Number:
    return above if condition > 0 else below


DEFINITIONS: dict[str, Callable[..., Number]] = {
    "sigmoid": _sigmoid,
    **{f.__name__: _bounded_periodic(f) for f in (mpmath.sin, mpmath.cos, mpmath.tan)},
    "exp": _bounded_exp,
    "expm1": lambda x: mpmath.expm1(x) if abs(x) < MAX_EXPONENT else _bounded_exp(x) - 1,
    "cosh": lambda x: (_bounded_exp(x) + _bounded_exp(-x)) / 2,
    "sinh": lambda x: mpmath.sinh(x) if abs(x) < MAX_EXPONENT else x * mpmath.inf,
    "softplus": lambda x: max(x, 0) + mpmath.log1p(_bounded_exp(-abs(x))),
    "select": _select,
    "sign": mpmath.sign,
    "Abs": mpmath.fabs,
    "bounded_power": _bounded_power,
}
"""What the primitives mean, where mpmath has another name or no bound."""
