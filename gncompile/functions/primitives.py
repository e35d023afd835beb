"""The primitive functions: sympy functions with declared, stable derivatives.

====================  =============================  ===========================================
function              meaning                        derivative
====================  =============================  ===========================================
``sigmoid(x)``        ``1 / (1 + e^-x)``             ``sigmoid(x) sigmoid(-x)``
``softplus(x)``       ``log(1 + e^x)``               ``sigmoid(x)``
``log1p(x)``          ``log(1 + x)``                 ``1 / (1 + x)``
``expm1(x)``          ``e^x - 1``                    ``e^x``
``erfc(x)``           ``1 - erf(x)``                 ``-2/sqrt(pi) e^(-x^2)``
``select(c, u, v)``   ``u`` where ``c > 0``, else v  ``select(c, u', v')``, none in ``c``
====================  =============================  ===========================================

Differentiating the definitions would give quotients of exponentials, which are NaN in float32 at
``|x| = 100``. Here each derivative is written in primitives that stay finite, and a test proves it equal to
the derivative of :meth:`Primitive.definition`. All symbols are real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import sympy
from sympy import Expr, Integer, Rational, Symbol


class Primitive(sympy.Function):
    """A real function of one real argument that knows its derivative and its definition."""

    nargs = (1,)

    def definition(self) -> Expr:
        """The same function in plain sympy."""
        raise NotImplementedError

    def _eval_is_extended_real(self) -> bool | None:
        return True if all(arg.is_extended_real for arg in self.args) else None

    def _eval_is_real(self) -> bool | None:
        return True if all(arg.is_real for arg in self.args) else None


class sigmoid(Primitive):
    """``1 / (1 + e^-x)``."""

    @classmethod
    def eval(cls, x: Expr) -> Expr | None:
        return Rational(1, 2) if x.is_zero else None

    def fdiff(self, argindex: int = 1) -> Expr:
        (x,) = self.args
        return sigmoid(x) * sigmoid(-x)

    def definition(self) -> Expr:
        return 1 / (1 + sympy.exp(-self.args[0]))

    def _eval_mpmath(self) -> tuple[Callable[[Any], Any], tuple[Expr, ...]]:
        return (lambda x: 1 / (1 + mpmath.exp(-x))), self.args

    def _eval_is_positive(self) -> bool | None:
        return self.args[0].is_real


class softplus(Primitive):
    """``log(1 + e^x)``."""

    @classmethod
    def eval(cls, x: Expr) -> Expr | None:
        return sympy.log(2) if x.is_zero else None

    def fdiff(self, argindex: int = 1) -> Expr:
        return sigmoid(self.args[0])

    def definition(self) -> Expr:
        return sympy.log(1 + sympy.exp(self.args[0]))

    def _eval_mpmath(self) -> tuple[Callable[[Any], Any], tuple[Expr, ...]]:
        return (lambda x: max(x, 0) + mpmath.log1p(mpmath.exp(-abs(x)))), self.args

    def _eval_is_positive(self) -> bool | None:
        return self.args[0].is_real


class log1p(Primitive):
    """``log(1 + x)``, accurate near zero."""

    @classmethod
    def eval(cls, x: Expr) -> Expr | None:
        return Integer(0) if x.is_zero else None

    def fdiff(self, argindex: int = 1) -> Expr:
        return 1 / (1 + self.args[0])

    def definition(self) -> Expr:
        return sympy.log(1 + self.args[0])


class expm1(Primitive):
    """``e^x - 1``, accurate near zero."""

    @classmethod
    def eval(cls, x: Expr) -> Expr | None:
        return Integer(0) if x.is_zero else None

    def fdiff(self, argindex: int = 1) -> Expr:
        return sympy.exp(self.args[0])

    def definition(self) -> Expr:
        return sympy.exp(self.args[0]) - 1


class erfc(Primitive):
    """``1 - erf(x)``, accurate for large ``x``.

    sympy's own turns ``erfc(-x)`` into ``2 - erfc(x)``, which cancels in exactly the tail it is needed for.
    """

    @classmethod
    def eval(cls, x: Expr) -> Expr | None:
        return Integer(1) if x.is_zero else None

    def fdiff(self, argindex: int = 1) -> Expr:
        return -2 / sympy.sqrt(sympy.pi) * sympy.exp(-(self.args[0] ** 2))

    def definition(self) -> Expr:
        return 1 - sympy.erf(self.args[0])


class select(Primitive):
    """``u`` where ``c > 0``, else ``v``; the only branch. A kink takes the ``else`` branch."""

    nargs = (3,)

    @classmethod
    def eval(cls, c: Expr, u: Expr, v: Expr) -> Expr | None:
        if u == v or c.is_positive:
            return u
        return v if c.is_nonpositive else None

    def fdiff(self, argindex: int = 1) -> Expr:
        c = self.args[0]
        return (Integer(0), select(c, 1, 0), select(c, 0, 1))[argindex - 1]

    def _eval_derivative(self, symbol: Symbol) -> Expr:
        c, u, v = self.args
        return select(c, u.diff(symbol), v.diff(symbol))

    def definition(self) -> Expr:
        c, u, v = self.args
        return sympy.Piecewise((u, c > 0), (v, True))

    def _eval_mpmath(self) -> tuple[Callable[[Any, Any, Any], Any], tuple[Expr, ...]]:
        return (lambda c, u, v: u if c > 0 else v), self.args


def relu(x: Expr) -> Expr:
    """``max(x, 0)`` with slope 0 at the kink."""
    return select(x, x, 0)


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger of two; ``b`` where they are equal."""
    return select(sympy.sympify(a) - b, a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller of two; ``b`` where they are equal."""
    return select(sympy.sympify(b) - a, a, b)


def clamp(x: Expr, low: Expr, high: Expr) -> Expr:
    """``x`` limited to ``[low, high]``, with slope 0 at and beyond both ends."""
    return minimum(maximum(x, low), high)


def number(value: float | str) -> sympy.Number:
    """The exact rational a decimal means: ``number(0.1)`` is 1/10, so that algebra stays exact."""
    return Rational(value if isinstance(value, str) else repr(value))


def as_float(value: float) -> sympy.Number:
    """A number that is only evaluated, in few digits; a whole one is exact, so that 1 and 0 simplify."""
    return sympy.Integer(int(value)) if value == int(value) else sympy.Float(value)


LARGEST = sympy.Float(3e38)
"""What exceeds this, just below the largest float32, counts as not finite."""


def finite(value: Expr) -> Expr:
    """1 where ``value`` is finite, else 0: a comparison with NaN is false."""
    return select(LARGEST - sympy.Abs(value), Integer(1), Integer(0))


PRIMITIVES: dict[str, type[sympy.Function]] = {
    "exp": sympy.exp,
    "log": sympy.log,
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "sinh": sympy.sinh,
    "cosh": sympy.cosh,
    "tanh": sympy.tanh,
    "asinh": sympy.asinh,
    "atan": sympy.atan,
    "erf": sympy.erf,
    "erfc": erfc,
    "abs": sympy.Abs,
    "sign": sympy.sign,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "log1p": log1p,
    "expm1": expm1,
    "select": select,
}
"""Every function an expression may contain, by the name users write; powers and roots are ``Pow``."""

SHORTHANDS: dict[str, Callable[..., Expr]] = {
    "sqrt": sympy.sqrt,
    "relu": relu,
    "maximum": maximum,
    "minimum": minimum,
    "max": maximum,
    "min": minimum,
    "clamp": clamp,
}
"""Names users may also write; each expands into primitives at once."""
