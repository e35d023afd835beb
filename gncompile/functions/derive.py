"""Slopes, second derivatives, and what the backward pass keeps; all by sympy.

For a pointwise function ``φ(x_1, …, x_k)`` :func:`pointwise_rule` derives ``∂φ/∂x_i`` and ``∂²φ/∂x_i∂x_j``,
and decides by elimination whether the slopes can be had from φ's own value (``tanh' = 1 - φ²``), so that the
inputs need not be kept.

Numbers stay exact (rationals, ``pi``, roots), so results depend neither on rounding nor on the hash seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import sympy
from sympy import Add, Expr, Integer, Mul, Pow, Symbol, log

from .primitives import declared, is_power_of_two, select
from .stable_forms import rebuilt, stable, transcendental

Keeps = Literal["nothing", "input", "output", "both"]


@dataclass(frozen=True)
class PointwiseRule:
    """What the compiler needs to know of ``φ(arguments)``, elementwise.

    ``slopes[i]`` is ``∂φ/∂x_i`` in the arguments; ``kept_slopes[i]`` is the same in what the backward pass
    keeps: nothing, the ``arguments``, the ``output`` symbol (φ's own value), or both. ``why`` says so in
    words. Free symbols that are no arguments are constants.
    """

    arguments: tuple[Symbol, ...]
    value: Expr
    slopes: tuple[Expr, ...]
    output: Symbol
    kept_slopes: tuple[Expr, ...]
    keeps: Keeps
    why: str

    @cached_property
    def seconds(self) -> dict[tuple[int, int], Expr]:
        """``∂²φ/∂x_i∂x_j`` for ``i <= j``, in the arguments; zeros included."""
        return {
            (i, j): stable(differentiate(slope, self.arguments[j]))
            for i, slope in enumerate(self.slopes)
            for j in range(i, len(self.arguments))
        }

    @cached_property
    def kept(self) -> tuple[Symbol, ...]:
        """The symbols the kept slopes read: some of the arguments, then possibly the output."""
        read = {symbol for slope in self.kept_slopes for symbol in slope.free_symbols}
        return tuple(symbol for symbol in (*self.arguments, self.output) if symbol in read)

    @property
    def piecewise_linear(self) -> bool:
        """Whether all second derivatives vanish wherever they exist."""
        return all(second == 0 for second in self.seconds.values())


@lru_cache(maxsize=4096)
def pointwise_rule(value: Expr, arguments: tuple[Symbol, ...]) -> PointwiseRule:
    """Derive the rule of ``value`` as a function of ``arguments``; cached.

    Raises :class:`ExpressionError` when ``value`` contains something without a rule.

    >>> x = Symbol("x", real=True)
    >>> rule = pointwise_rule(sympy.tanh(x), (x,))
    >>> rule.kept_slopes, rule.keeps
    ((1 - output**2,), 'output')
    """
    value = stable(value)
    slopes = tuple(stable(differentiate(value, argument)) for argument in arguments)
    value = stable(without_ties(value))
    output = _fresh("output", value.free_symbols | set(arguments))
    kept_slopes, keeps, why = _what_to_keep(value, slopes, arguments, output)
    return PointwiseRule(tuple(arguments), value, slopes, output, kept_slopes, keeps, why)


def _fresh(name: str, taken: Iterable[Symbol]) -> Symbol:
    names = {symbol.name for symbol in taken}
    while name in names:
        name += "_"
    return Symbol(name, real=True)


# Derivatives ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def differentiate(expression: Expr, symbol: Symbol) -> Expr:
    """``∂expression/∂symbol`` with each primitive's declared derivative.

    Differs from ``expression.diff`` at kinks only: ``|u|' = sign(u) u'``, ``sign' = 0``, no delta functions.
    """
    if symbol not in expression.free_symbols:
        return Integer(0)
    if expression == symbol:
        return Integer(1)
    args = expression.args
    slopes = [differentiate(arg, symbol) for arg in args]
    if isinstance(expression, Add):
        return Add(*slopes)
    if isinstance(expression, Mul):
        return Add(*(Mul(*args[:i], slopes[i], *args[i + 1 :]) for i in range(len(args))))
    if isinstance(expression, Pow):
        base, power = args
        if slopes[1] == 0:
            return power * base ** (power - 1) * slopes[0]
        return expression * (slopes[1] * log(base) + power * slopes[0] / base)
    if isinstance(expression, sympy.Abs):
        return sympy.sign(args[0]) * slopes[0]
    if isinstance(expression, sympy.sign):
        return Integer(0)
    if isinstance(expression, select):
        return select(args[0], slopes[1], slopes[2])
    return Add(*(expression.fdiff(i + 1) * slopes[i] for i in range(len(args)) if slopes[i] != 0))


def without_ties(e: Expr) -> Expr:
    """``select(c, u, select(-c, v, (u + v)/2)) -> select(c, u, v)`` where ``u - v`` is a multiple of ``c``.

    The larger or smaller of two; that equal arguments share the slope matters no more to the value.
    """
    e = rebuilt(e, [without_ties(arg) for arg in e.args])
    if not (isinstance(e, select) and isinstance(e.args[2], select)):
        return e
    c, u, (opposite, v, tie) = e.args[0], e.args[1], e.args[2].args
    tied = opposite == -c and sympy.expand(tie - (u + v) / 2) == 0
    return select(c, u, v) if tied and sympy.cancel((u - v) / c).is_number else e


# What to keep ---------------------------------------------------------------------------------------------


def _what_to_keep(
    value: Expr, slopes: tuple[Expr, ...], arguments: tuple[Symbol, ...], output: Symbol
) -> tuple[tuple[Expr, ...], Keeps, str]:
    if not any(slope.has(*arguments) for slope in slopes):
        return slopes, "nothing", "the slope is constant"
    eliminated = tuple(stable(in_output(slope, value, output, arguments)) for slope in slopes)
    if not any(slope.has(*arguments) for slope in eliminated):
        return eliminated, "output", "the slope follows from the function's own value"
    if _cost(eliminated) < _cost(slopes):
        return (
            eliminated,
            "both",
            "the function's own value spares evaluating it again for the slope",
        )
    return slopes, "input", "the slope does not follow from the function's own value"


def _cost(slopes: tuple[Expr, ...]) -> int:
    """Number of different transcendental functions to evaluate."""
    return len(set().union(*map(transcendental, slopes)))


def in_output(slope: Expr, value: Expr, output: Expr, arguments: tuple[Symbol, ...]) -> Expr:
    """``slope`` with everything that ``output = value(arguments)`` determines written in ``output``.

    ``value = c f(u) + d`` gives ``f(u) = (output - d)/c``; what that says about related functions is
    declared with ``f``. A ``select`` is undone branch by branch if the output shows which branch was taken.

    The output is a rounded number, so nothing is taken from it that rounding may have lost:
    :func:`_keeps_digits` says which ``c`` and ``d`` leave ``f(u)`` exact to a few roundings, and
    :func:`_test_on_output` which branches can be told apart without any error.
    """
    scale, core, shift = _affine(value, arguments)
    if not _keeps_digits(scale, core, shift):
        return slope
    t = (output - shift) / scale
    if isinstance(core, select):
        return _in_output_branchwise(slope, core, t, arguments)
    known = {core: t}
    primitive = declared(core)
    if primitive and primitive.related:
        known.update(primitive.related(core.args[0], t))

    def rewrite(e: Expr) -> Expr:
        if e in known:
            return known[e]
        if isinstance(core, Pow) and isinstance(e, Pow) and e.base == core.base:
            power = e.exp / core.exp
            if power.is_Integer and abs(power) <= _MAX_POWER:
                return t**power
        return rebuilt(e, [rewrite(arg) for arg in e.args])

    return rewrite(slope) if core.has(*arguments) else slope


_MAX_POWER = 4
"""A power multiplies the output's relative error by its exponent."""

_MAX_SCALE = 2**20
"""A larger factor, or a smaller one than its inverse, may over- or underflow where the slope does not."""


def _keeps_digits(scale: Expr, core: Expr, shift: Expr) -> bool:
    """Whether ``output = scale core + shift``, once rounded, still tells ``core``.

    Without a shift, a rounding ``ε`` of the output is one of ``core``, relative to ``core``. A shift adds
    ``ε |shift/scale|`` in absolute terms, whatever the size of ``core``: allowed where ``core`` itself, as
    a bounded function, is only meant to within ``ε`` times its bound of one, and the shift is no larger.
    """
    if not 1 <= abs(scale) * _MAX_SCALE <= _MAX_SCALE**2:
        return False
    if shift == 0:
        return True
    known = declared(core)
    bounded = known is not None and max(map(abs, known.values)) <= 1 and not known.kinked
    return bounded and shift.is_number and bool(abs(shift) <= abs(scale))


def _in_output_branchwise(
    slope: Expr, branch: select, t: Expr, arguments: tuple[Symbol, ...]
) -> Expr:
    c, u, v = branch.args
    test = _test_on_output(c, u, v, t, arguments)
    if test is None:
        return slope

    def rewrite(e: Expr) -> Expr:
        if isinstance(e, select) and e.args[0] == c:
            taken = in_output(e.args[1], u, t, arguments)
            return select(test, taken, in_output(e.args[2], v, t, arguments))
        return rebuilt(e, [rewrite(arg) for arg in e.args])

    return rewrite(slope)


def _test_on_output(
    c: Expr, u: Expr, v: Expr, t: Expr, arguments: tuple[Symbol, ...]
) -> Expr | None:
    """A condition on ``t = select(c, u, v)`` that holds exactly where ``c > 0``, or None if none is found.

    Where ``c`` depends on the arguments through ``u`` alone, it is ``c`` with ``t`` in place of ``u``: on the
    first branch it *is* ``c``; on the second it must be shown that ``c(v) <= 0`` wherever ``c(u) <= 0``.

    Both must hold of rounded numbers too. So ``u`` may not add a number to what ``c`` compares, or
    ``x + 1 > 1`` would be asked for ``x > 0``. A comparison with a number ``k`` may scale the output by
    powers of two only, and ``v`` must be a number on the other side of ``k``: rounding keeps the order of
    two numbers, but not that of ``10 x`` and 7. Against zero, a rounded product keeps its sign.
    """
    scale, core, shift = _affine(u, arguments)
    if not core.has(*arguments) or not _keeps_digits(scale, core, Integer(0)):
        return None
    if shift != 0 and not (_follows_sign(u, c) or _follows_sign(-u, c)):
        return None
    test, elsewhere = (c.xreplace({core: (value - shift) / scale}) for value in (t, v))
    if test.has(*arguments):
        return None
    (output,) = t.free_symbols
    level, varying = test.as_independent(output, as_Add=True)
    factor, compared = varying.as_coeff_Mul()
    if compared not in (output, sympy.Abs(output)):
        return None
    if level == 0:
        return test if _never_positive(elsewhere, c) else None
    exact = is_power_of_two(factor) and not elsewhere.has(*arguments)
    return test if exact and elsewhere.is_nonpositive else None


def _never_positive(e: Expr, c: Expr) -> bool:
    """Whether ``e`` is provably at most zero wherever ``c`` is."""
    if e.is_nonpositive or _follows_sign(e, c):
        return True
    scale, core = e.as_coeff_Mul()
    if not (scale.is_positive and isinstance(core, select)):
        return False
    inner, u, v = core.args
    return (_never_positive(u, c) or _follows_sign(-u, inner)) and _never_positive(v, c)


def _follows_sign(e: Expr, c: Expr) -> bool:
    """Whether ``e`` provably has the sign of ``c``."""
    if e.as_content_primitive()[1] == c.as_content_primitive()[1]:
        return True  # contents are positive numbers
    scale, core = e.as_coeff_Mul()
    known = declared(core)
    keeps = known is not None and known.keeps_sign and bool(scale.is_positive)
    return keeps and _follows_sign(core.args[0], c)


def _affine(e: Expr, arguments: tuple[Symbol, ...]) -> tuple[Expr, Expr, Expr]:
    """``(c, g, d)`` with ``e = c g + d``: ``c`` a number that is not zero, ``d`` free of the arguments."""
    shift, rest = e.as_independent(*arguments, as_Add=True)
    content, rest = rest.as_content_primitive() if isinstance(rest, Add) else (Integer(1), rest)
    factors = rest.args if isinstance(rest, Mul) else (rest,)
    numbers = Mul(*(f for f in factors if f.is_number))
    core = Mul(*(f for f in factors if not f.is_number))
    return content * numbers, core, shift
