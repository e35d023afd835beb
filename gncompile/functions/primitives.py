"""The primitive functions: sympy functions with declared, stable derivatives, and all that is known of each.

====================  =============================  ===========================================
function              meaning                        derivative
====================  =============================  ===========================================
``sigmoid(x)``        ``1 / (1 + e^-x)``             ``sigmoid(x) sigmoid(-x)``
``softplus(x)``       ``log(1 + e^x)``               ``sigmoid(x)``
``log1p(x)``          ``log(1 + x)``                 ``1 / (1 + x)``
``expm1(x)``          ``e^x - 1``                    ``e^x``
``erfc(x)``           ``1 - erf(x)``                 ``-2/sqrt(pi) e^(-x^2)``
``logsumexp(u, …)``   ``log(e^u + …)``               ``e^-logsumexp(0, v - u, …)`` in ``u``
``select(c, u, v)``   ``u`` where ``c > 0``, else v  ``select(c, u', v')``, none in ``c``
====================  =============================  ===========================================

Differentiating the definitions would give quotients of exponentials, which are NaN in float32 at
``|x| = 100``. Here each derivative is written in primitives that stay finite, and a test proves it equal to
the derivative of :meth:`Primitive.definition`. All symbols are real.

A new primitive is a class of this kind and one call of :func:`declare`: parser, derivation, rewriting,
checks, the reference and both emitters read what is declared.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mpmath
import sympy
from sympy import Expr, Integer, Rational, Symbol

from ..errors import InternalError


class Primitive(sympy.Function):
    """A real function of one real argument that knows its derivative and its definition."""

    nargs: tuple[int, ...] | None = (1,)

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


class logsumexp(Primitive):
    """``log Σ_i e^(u_i)`` of two numbers or more; of two, a softplus."""

    nargs = None

    @classmethod
    def eval(cls, *u: Expr) -> Expr | None:
        if len(u) < 2:
            raise TypeError(f"logsumexp takes two arguments or more, not {len(u)}")
        if len(u) == 2:
            return cls.folded(u)
        ordered = tuple(sorted(u, key=sympy.default_sort_key))
        return None if ordered == u else cls(*ordered)

    @staticmethod
    def folded(terms: tuple[Expr, ...]) -> Expr:
        """As it is computed, one term after another: ``log(e^t + e^u) = t + softplus(u - t)``."""
        ordered = sorted(terms, key=lambda e: (not e.is_number, sympy.default_sort_key(e)))
        return functools.reduce(lambda total, u: total + softplus(u - total), ordered)

    def fdiff(self, argindex: int = 1) -> Expr:
        """``e^(u - self)``, by differences that do not cancel."""
        u = self.args[argindex - 1]
        return sympy.exp(-logsumexp(*(v - u for v in self.args)))

    def definition(self) -> Expr:
        return sympy.log(sympy.Add(*map(sympy.exp, self.args)))


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


class hypot(sympy.Function):
    """``√(a² + b²)``, which does not overflow before its value does; made where a product is ordered."""

    nargs = (2,)


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


def is_power_of_two(value: Expr) -> bool:
    """Whether a product with ``value`` is exact in floating point, up to its sign."""
    if not value.is_Rational or value == 0:
        return False
    return all(part & (part - 1) == 0 for part in (abs(value.p), value.q))


def as_float(value: float) -> sympy.Number:
    """A number that is only evaluated, in few digits; a whole one is exact, so that 1 and 0 simplify."""
    return sympy.Integer(int(value)) if value == int(value) else sympy.Float(value)


LARGEST = sympy.Float(3e38)
"""What exceeds this, just below the largest float32, counts as not finite."""


def finite(value: Expr) -> Expr:
    """1 where ``value`` is finite, else 0: a comparison with NaN is false."""
    return select(LARGEST - sympy.Abs(value), Integer(1), Integer(0))


# Declarations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """What is known of the primitive ``f`` besides its slope, ``f.fdiff``, and its definition.

    ``torch`` and ``triton`` are the functions that compute it; ``statement`` is the torch statement where
    that is not ``torch.<torch>({0}, …, out={out})``. ``values`` are its infimum and supremum. ``sums[s]`` is
    ``f(u) + s`` as one function of ``u``, where the sum would cancel; ``related`` says what ``f(u) = t``
    tells of other functions of ``u``. ``keeps_sign``: ``f(u)`` has the sign of ``u``; ``kinked``: it changes
    its branch with the sign of its first argument.
    """

    function: type[sympy.Function]
    torch: str
    triton: str
    statement: str = ""
    values: tuple[float, float] = (-math.inf, math.inf)
    sums: Mapping[Expr, Callable[[Expr], Expr]] = field(default_factory=dict)
    related: Callable[[Expr, Expr], dict[Expr, Expr]] | None = None
    keeps_sign: bool = False
    kinked: bool = False


PRIMITIVES: dict[str, type[sympy.Function]] = {}
"""Every function an expression may contain, by the name users write; powers and roots are ``Pow``."""

_DECLARED: dict[type, Declared] = {}


def declare(function: type[sympy.Function], torch: str, triton: str, **known: Any) -> None:
    """Make ``function`` a primitive; ``known`` are the further fields of :class:`Declared`."""
    _DECLARED[function] = Declared(function, torch, triton, **known)
    PRIMITIVES[function.__name__.lower()] = function


def declared(e: Expr) -> Declared | None:
    """What is known of the function ``e`` is a value of, or None if that is no primitive."""
    return _DECLARED.get(type(e))


def spelling(e: Expr) -> Declared:
    """:func:`declared`, of what is to be computed."""
    known = declared(e)
    if known is None:
        raise InternalError(
            f"{type(e).__name__} reached the emitter; stable() rewrites or refuses it"
        )
    return known


def torch_functions() -> set[str]:
    """The functions of torch that primitives are computed by."""
    return {known.torch for known in _DECLARED.values()}


def kinked(e: sympy.Basic) -> set[Expr]:
    """The parts of ``e`` that change their branch with the sign of their first argument."""
    return e.atoms(*(function for function, known in _DECLARED.items() if known.kinked))


def written_out(e: Expr, known: Mapping[str, object]) -> Expr:
    """``e`` in plain sympy but for the primitives that ``known`` or mpmath has by name: for references."""

    def foreign(part: sympy.Basic) -> bool:
        name = type(part).__name__
        return isinstance(part, Primitive) and name not in known and not hasattr(mpmath, name)

    return e.replace(foreign, lambda part: part.definition())


declare(sympy.exp, "exp", "accurate.exp", values=(0, math.inf), sums={Integer(-1): expm1})
declare(sympy.log, "log", "tl.log")
declare(sympy.sin, "sin", "tl.sin", values=(-1, 1))
declare(sympy.cos, "cos", "tl.cos", values=(-1, 1))
declare(sympy.tan, "tan", "accurate.tan")
declare(sympy.sinh, "sinh", "accurate.sinh", keeps_sign=True)
declare(sympy.cosh, "cosh", "accurate.cosh", values=(1, math.inf))
declare(
    sympy.tanh,
    "tanh",
    "accurate.tanh",
    values=(-1, 1),
    keeps_sign=True,
    sums={Integer(1): lambda u: 2 * sigmoid(2 * u), Integer(-1): lambda u: -2 * sigmoid(-2 * u)},
    related=lambda u, t: {sympy.cosh(u): (1 - t**2) ** Rational(-1, 2)},
)
declare(sympy.asinh, "asinh", "accurate.asinh", keeps_sign=True)
declare(sympy.atan, "atan", "accurate.atan", values=(-math.pi / 2, math.pi / 2), keeps_sign=True)
declare(
    sympy.erf,
    "erf",
    "tl.erf",
    values=(-1, 1),
    keeps_sign=True,
    sums={Integer(1): lambda u: erfc(-u), Integer(-1): lambda u: -erfc(u)},
    related=lambda u, t: {erfc(u): 1 - t},
)
declare(
    erfc,
    "erfc",
    "accurate.erfc",
    values=(0, 2),
    sums={Integer(-1): lambda u: -sympy.erf(u), Integer(-2): lambda u: -erfc(-u)},
    related=lambda u, t: {sympy.erf(u): 1 - t},
)
declare(sympy.Abs, "abs", "tl.abs", values=(0, math.inf), kinked=True)
declare(sympy.sign, "sign", "accurate.sign", values=(-1, 1), kinked=True)
declare(
    sigmoid,
    "sigmoid",
    "accurate.sigmoid",
    values=(0, 1),
    sums={
        Integer(-1): lambda u: -sigmoid(-u),
        Rational(-1, 2): lambda u: sympy.tanh(u / 2) / 2,
    },
    related=lambda u, t: {sigmoid(-u): 1 - t},
)
declare(
    softplus,
    "logaddexp",
    "accurate.softplus",
    # Beyond 40, log(1 + e^x) and x agree to less than one float64 rounding.
    statement="torch.ops.aten.softplus.out({0}, 1, 40, out={out})",
    values=(0, math.inf),
    related=lambda u, t: {sigmoid(u): -expm1(-t), sigmoid(-u): sympy.exp(-t)},
)
declare(logsumexp, "logaddexp", "accurate.softplus")  # see logsumexp.folded
declare(log1p, "log1p", "accurate.log1p", keeps_sign=True)
declare(
    expm1,
    "expm1",
    "accurate.expm1",
    values=(-1, math.inf),
    keeps_sign=True,
    sums={Integer(1): sympy.exp},
    related=lambda u, t: {sympy.exp(u): 1 + t},
)
declare(select, "where", "accurate.select", kinked=True)
_DECLARED[hypot] = Declared(hypot, "hypot", "accurate.hypot")

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
