"""Slopes, second derivatives, stable forms, and what the backward pass keeps; all by sympy.

For a pointwise function ``φ(x_1, …, x_k)`` :func:`pointwise_rule` derives ``∂φ/∂x_i`` and ``∂²φ/∂x_i∂x_j``,
and decides by elimination whether the slopes can be had from φ's own value (``tanh' = 1 - φ²``), so that the
inputs need not be kept.

Numbers stay exact (rationals, ``pi``, roots), so results depend neither on rounding nor on the hash seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import sympy
from sympy import Add, Expr, Integer, Mul, Pow, Rational, Symbol, cosh, erf, exp, log, sinh, tanh

from .errors import ExpressionError, message
from .functions import PRIMITIVES, erfc, expm1, log1p, maximum, minimum, number, select, sigmoid, softplus

Keeps = Literal["nothing", "input", "output", "both"]

_PIECEWISE = (select, sympy.Abs, sympy.sign)
_ALLOWED = (Add, Mul, Pow, Symbol, sympy.Number, sympy.NumberSymbol, *PRIMITIVES.values())


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
    >>> rule = pointwise_rule(tanh(x), (x,))
    >>> rule.kept_slopes, rule.keeps
    ((1 - output**2,), 'output')
    """
    value = stable(value)
    slopes = tuple(stable(differentiate(value, argument)) for argument in arguments)
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

    Differs from ``expression.diff`` at kinks only: ``|u|' = sign(u) u'`` and ``sign' = 0``, no delta functions.
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


# Stable forms ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def stable(expression: Expr) -> Expr:
    """The same function, rewritten so that float32 gives a finite value wherever the mathematics does.

    Applies :data:`RULES` from the leaves up until none fits. Raises :class:`ExpressionError` for functions
    outside :data:`~gncompile.functions.PRIMITIVES`.
    """
    expression = sympy.sympify(expression)
    if expression.args:
        expression = _rebuilt(expression, [stable(arg) for arg in expression.args])
    for rule in RULES:
        better = rule(expression)
        if better is not None and better != expression:
            return stable(better)
    if not isinstance(expression, _ALLOWED) or expression.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
        known = ", ".join(sorted(PRIMITIVES))
        raise ExpressionError(
            message(
                f"{expression} has no derivative rule ({type(expression).__name__})",
                instead=f"write it with + - * / ** and the functions {known}",
            )
        )
    return expression


def _rebuilt(expression: Expr, args: list[Expr]) -> Expr:
    return expression if tuple(args) == expression.args else expression.func(*args)


def exact_numbers(e: Expr) -> Expr | None:
    """``0.1 -> 1/10``"""
    return number(float(e)) if isinstance(e, sympy.Float) and e.is_finite else None


def extremes(e: Expr) -> Expr | None:
    """``Max(a, b) -> select(a-b, a, b)``, ``Min(a, b) -> select(b-a, a, b)``"""
    if not isinstance(e, sympy.Max | sympy.Min):
        return None
    fold = maximum if isinstance(e, sympy.Max) else minimum
    result, *rest = sorted(e.args, key=lambda arg: (arg.is_number, sympy.default_sort_key(arg)))
    for arg in rest:
        result = fold(result, arg)
    return result


def complement(e: Expr) -> Expr | None:
    """sympy's ``erfc`` -> ours, which does not reflect"""
    return erfc(e.args[0]) if isinstance(e, sympy.erfc) else None


def condition_scale(e: Expr) -> Expr | None:
    """``select(2 c, u, v) -> select(c, u, v)``"""
    if not isinstance(e, select):
        return None
    c, u, v = e.args
    scale = c.as_content_primitive()[0] if isinstance(c, Add) else c.as_coeff_Mul()[0]
    return select(c / abs(scale), u, v)


def merged_branches(e: Expr) -> Expr | None:
    """``select(c, u, v) select(c, w, z) -> select(c, u w, v z)``"""
    if not isinstance(e, Mul):
        return None
    branches = [factor for factor in e.args if isinstance(factor, select)]
    for i, first in enumerate(branches):
        for second in branches[i + 1 :]:
            c, u, v = first.args
            if second.args[0] == c:
                return e / first / second * select(c, u * second.args[1], v * second.args[2])
    return None


def logistic_quotient(e: Expr) -> Expr | None:
    """``(1 + e^u)^-n -> sigmoid(-u)^n``"""
    if not (isinstance(e, Pow) and isinstance(e.base, Add) and e.exp.is_negative):
        return None
    one, rest = e.base.as_coeff_Add()
    return sigmoid(-rest.args[0]) ** -e.exp if one == 1 and isinstance(rest, exp) else None


def logistic_product(e: Expr) -> Expr | None:
    """``e^(-j u) sigmoid(u)^k -> sigmoid(-u)^j sigmoid(u)^(k-j)`` for ``1 <= j <= k``"""
    if not isinstance(e, Mul):
        return None
    for grow in (f for f in e.args if isinstance(f, exp)):
        for factor in e.args:
            base, power = factor.as_base_exp()
            if isinstance(base, sigmoid) and power.is_Integer:
                u = base.args[0]
                times = sympy.cancel(-grow.args[0] / u)
                if times.is_Integer and 1 <= times <= power:
                    return e / grow / factor * sigmoid(-u) ** times * sigmoid(u) ** (power - times)
    return None


def hyperbolic_quotient(e: Expr) -> Expr | None:
    """``sinh(u) / cosh(u) -> tanh(u)``"""
    if not isinstance(e, Mul):
        return None
    for factor in e.args:
        if isinstance(factor, sinh) and 1 / cosh(factor.args[0]) in e.args:
            return e / factor * cosh(factor.args[0]) * tanh(factor.args[0])
    return None


def logarithms(e: Expr) -> Expr | None:
    """``log(e^u + e^v) -> v + softplus(u-v)``, ``log(1+u) -> log1p(u)``, ``log(cosh u) -> softplus(2u)-u-log 2``"""
    if isinstance(e, log1p) and isinstance(e.args[0], exp):
        return softplus(e.args[0].args[0])
    if not isinstance(e, log) or e.args[0].is_number:
        return None
    (inside,) = e.args
    if isinstance(inside, sigmoid):
        return -softplus(-inside.args[0])
    scale, core = inside.as_coeff_Mul()
    if isinstance(core, cosh) and scale.is_positive:
        u = core.args[0]
        return softplus(2 * u) - u + log(scale / 2)
    if isinstance(inside, Add):
        powers = [_exponent(term) for term in inside.args]
        if len(powers) == 2 and None not in powers:
            v, u = sorted(powers, key=lambda p: (not p.is_number, sympy.default_sort_key(p)))
            return v + softplus(u - v)
        one, rest = inside.as_coeff_Add()
        return log1p(rest) if one == 1 else None
    return None


def _exponent(term: Expr) -> Expr | None:
    if term == 1:
        return Integer(0)
    return term.args[0] if isinstance(term, exp) else None


def cancelling_sums(e: Expr) -> Expr | None:
    """``e^u - 1 -> expm1(u)``, ``1 - sigmoid(u) -> sigmoid(-u)``, ``1 + erf(u) -> erfc(-u)`` and their like.

    Each replaces a sum that cancels in one tail by a function that does not.
    """
    if not isinstance(e, Add):
        return None
    constant, _ = e.as_coeff_Add()
    if constant == 0:
        return None
    for term in e.args:
        scale, core = term.as_coeff_Mul()
        merged = _merged(core, constant / scale) if core.args and len(core.args) == 1 else None
        if merged is not None:
            return e - term - constant + scale * merged
    return None


def _merged(f: Expr, shift: Rational) -> Expr | None:
    """``f + shift`` as one function, if the shift moves a limit of ``f`` to zero or its middle to zero."""
    (u,) = f.args
    forms: dict[tuple[type, Expr], Callable[[Expr], Expr]] = {
        (exp, Integer(-1)): expm1,
        (expm1, Integer(1)): exp,
        (sigmoid, Integer(-1)): lambda u: -sigmoid(-u),
        (sigmoid, Rational(-1, 2)): lambda u: tanh(u / 2) / 2,
        (tanh, Integer(1)): lambda u: 2 * sigmoid(2 * u),
        (tanh, Integer(-1)): lambda u: -2 * sigmoid(-2 * u),
        (erf, Integer(1)): lambda u: erfc(-u),
        (erf, Integer(-1)): lambda u: -erfc(u),
        (erfc, Integer(-1)): lambda u: -erf(u),
        (erfc, Integer(-2)): lambda u: -erfc(-u),
    }
    form = forms.get((type(f), shift))
    return form(u) if form else None


def paired_exponentials(e: Expr) -> Expr | None:
    """``e^u + e^-u -> 2 cosh(u)``, ``e^u - e^-u -> 2 sinh(u)``"""
    if not isinstance(e, Add):
        return None
    scales = {term.as_coeff_Mul()[1]: term.as_coeff_Mul()[0] for term in e.args}
    for core in (c for c in scales if isinstance(c, exp)):
        u, scale, other = core.args[0], scales[core], scales.get(exp(-core.args[0]))
        if other in (scale, -scale) and not u.could_extract_minus_sign():
            pair = cosh(u) if other == scale else sinh(u)
            return e - scale * core - other * exp(-u) + 2 * scale * pair
    return None


def vanishing_times_polynomial(e: Expr) -> Expr | None:
    """``f(u) (1 + x²) -> f(u) + f(u) x²``

    Where ``f`` has underflowed to 0 the polynomial may have overflowed, and ``0 * inf`` is NaN; written out,
    the emitter multiplies ``f`` by one ``x`` after another, which stays 0.
    """
    if not isinstance(e, Mul) or not any(_transcendental(factor) for factor in e.args):
        return None
    for factor in e.args:
        base, power = factor.as_base_exp()
        if isinstance(base, Add) and power.is_Integer and 1 <= power <= 4 and _overflows(factor):
            rest = e / factor
            return Add(*(rest * term for term in sympy.expand(factor).args))
    return None


def _transcendental(e: Expr) -> bool:
    return any(isinstance(f, sympy.Function) and not isinstance(f, _PIECEWISE) for f in _walk(e))


def _overflows(factor: Expr) -> bool:
    symbols = sorted(factor.free_symbols, key=lambda s: s.name)
    return bool(factor.is_polynomial(*symbols)) and sympy.Poly(factor, *symbols).total_degree() > 1


def _walk(e: Expr) -> Iterable[Expr]:
    return sympy.preorder_traversal(e)


RULES: tuple[Callable[[Expr], Expr | None], ...] = (
    exact_numbers,
    extremes,
    complement,
    condition_scale,
    merged_branches,
    logistic_quotient,
    logistic_product,
    hyperbolic_quotient,
    logarithms,
    cancelling_sums,
    paired_exponentials,
    vanishing_times_polynomial,
)
"""Each rule returns its replacement, or None where it does not apply; the first that applies is taken."""


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
        return eliminated, "both", "the function's own value spares evaluating it again for the slope"
    return slopes, "input", "the slope does not follow from the function's own value"


def _cost(slopes: tuple[Expr, ...]) -> int:
    """Number of different transcendental functions to evaluate."""
    functions = {f for slope in slopes for f in _walk(slope) if isinstance(f, sympy.Function)}
    return len([f for f in functions if not isinstance(f, _PIECEWISE)])


def in_output(slope: Expr, value: Expr, output: Expr, arguments: tuple[Symbol, ...]) -> Expr:
    """``slope`` with everything that ``output = value(arguments)`` determines written in ``output``.

    ``value = c f(u) + d`` gives ``f(u) = (output - d)/c``; what that says about related functions follows from
    :data:`RELATIONS`. A ``select`` is undone branch by branch if the output shows which branch was taken.
    """
    scale, core, shift = _affine(value, arguments)
    t = (output - shift) / scale
    if isinstance(core, select):
        return _in_output_branchwise(slope, core, t, arguments)
    known = {core: t}
    if type(core) in RELATIONS:
        known.update(RELATIONS[type(core)](core.args[0], t))

    def rewrite(e: Expr) -> Expr:
        if e in known:
            return known[e]
        if isinstance(core, Pow) and isinstance(e, Pow) and e.base == core.base:
            if (e.exp / core.exp).is_Integer:
                return t ** (e.exp / core.exp)
        return _rebuilt(e, [rewrite(arg) for arg in e.args]) if e.args else e

    return rewrite(slope) if core.has(*arguments) else slope


RELATIONS: dict[type, Callable[[Expr, Expr], dict[Expr, Expr]]] = {
    sigmoid: lambda u, t: {sigmoid(-u): 1 - t},
    softplus: lambda u, t: {sigmoid(u): -expm1(-t), sigmoid(-u): exp(-t)},
    expm1: lambda u, t: {exp(u): 1 + t},
    erf: lambda u, t: {erfc(u): 1 - t},
    erfc: lambda u, t: {erf(u): 1 - t},
}
"""What ``f(u) = t`` says about other functions of ``u``."""


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
        return _rebuilt(e, [rewrite(arg) for arg in e.args]) if e.args else e

    return rewrite(slope)


def _test_on_output(
    c: Expr, u: Expr, v: Expr, t: Expr, arguments: tuple[Symbol, ...]
) -> Expr | None:
    """A condition on ``t = select(c, u, v)`` that holds exactly where ``c > 0``, or None if none is found.

    With ``c = k u + m`` it is ``k t + m > 0``: true on the first branch, where it *is* ``c``; on the second it
    must be shown that ``k v + m <= 0`` wherever ``c <= 0``.
    """
    scale_u, core_u, shift_u = _affine(u, arguments)
    scale_c, core_c, shift_c = _affine(c, arguments)
    if core_u != core_c:
        return None
    k = scale_c / scale_u
    m = shift_c - k * shift_u
    elsewhere = k * v + m
    shown = elsewhere.is_nonpositive or _follows_sign(elsewhere, c)
    return k * t + m if shown else None


_SIGN_KEEPING = (expm1, log1p, tanh, sinh, sympy.asinh, sympy.atan, erf)


def _follows_sign(e: Expr, c: Expr) -> bool:
    """Whether ``e`` provably has the sign of ``c``."""
    if (e / c).is_positive and (e / c).is_number:
        return True
    scale, core = e.as_coeff_Mul()
    return (
        bool(scale.is_positive) and isinstance(core, _SIGN_KEEPING) and _follows_sign(core.args[0], c)
    )


def _affine(e: Expr, arguments: tuple[Symbol, ...]) -> tuple[Expr, Expr, Expr]:
    """``(c, g, d)`` with ``e = c g + d``: ``c`` a number that is not zero, ``d`` free of the arguments."""
    shift, rest = e.as_independent(*arguments, as_Add=True)
    content, rest = rest.as_content_primitive() if isinstance(rest, Add) else (Integer(1), rest)
    factors = rest.args if isinstance(rest, Mul) else (rest,)
    numbers = Mul(*(f for f in factors if f.is_number))
    core = Mul(*(f for f in factors if not f.is_number))
    return content * numbers, core, shift
