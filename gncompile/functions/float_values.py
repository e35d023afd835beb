"""Values of expressions in Python's floats, which overflow as tensors do."""

from __future__ import annotations

import math
from collections.abc import Callable

import sympy

from .primitives import written_out


def float_function(
    formula: sympy.Expr, symbols: tuple[sympy.Symbol, sympy.Symbol]
) -> Callable[..., float]:
    """``formula`` in Python's floats, which overflow as tensors do."""
    plain = written_out(formula, _FLOAT)
    function: Callable[..., float] = sympy.lambdify(symbols, plain, [_FLOAT, "math"], cse=True)
    return function


def float_value(function: Callable[..., float], z: float, y: float) -> float | None:
    """The finite real value in float64, or None."""
    try:
        value = function(z, y)
    except (OverflowError, ZeroDivisionError, ValueError, TypeError):  # TypeError: a complex number
        return None
    return value if not isinstance(value, complex) and math.isfinite(value) else None


def _float_sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _float_logsumexp(*u: float) -> float:
    largest = max(u)
    return largest + math.log(sum(math.exp(each - largest) for each in u))


def _unraised(function: Callable[[float], float]) -> Callable[[float], float]:
    """Overflow to ±inf as tensors do; Python would raise, also in a branch not taken."""

    def evaluate(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return math.copysign(math.inf, x) if function is math.sinh else math.inf

    return evaluate


_FLOAT: dict[str, Callable[..., float]] = {
    **{f.__name__: _unraised(f) for f in (math.exp, math.expm1, math.cosh, math.sinh)},
    "sigmoid": _float_sigmoid,
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "logsumexp": _float_logsumexp,
    "select": lambda condition, above, below: above if condition > 0 else below,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "Abs": abs,
}
