"""Stable forms: the same function, finite in float32 wherever the mathematics is.

Users write ``1/(1 + exp(-x))`` and ``log(1 + exp(x))``, and differentiating products yields quotients of
exponentials. A few named rules turn them into primitives with declared derivatives. Each rule is written
``before -> after`` and returns its replacement, or None where it does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import sympy
from sympy import (
    Add,
    Expr,
    Integer,
    Mul,
    Pow,
    Rational,
    Symbol,
    cos,
    cosh,
    exp,
    log,
    sin,
    sinh,
    tanh,
)

from ..errors import ExpressionError
from .primitives import (
    PRIMITIVES,
    declared,
    erfc,
    is_power_of_two,
    kinked,
    log1p,
    logsumexp,
    maximum,
    minimum,
    number,
    select,
    sigmoid,
    softplus,
)

# Writing out a product of sums may grow without bound; beyond this many terms it is left alone.
_MAX_TERMS = 64
_ALGEBRA = (Add, Mul, Pow, Symbol, sympy.Number, sympy.NumberSymbol)


@lru_cache(maxsize=65536)
def stable(expression: Expr) -> Expr:
    """The same function, rewritten so that float32 gives a finite value wherever the mathematics does.

    Applies :data:`RULES` from the leaves up until none fits. Raises :class:`ExpressionError` for functions
    outside :data:`~gncompile.functions.PRIMITIVES`.
    """
    expression = sympy.sympify(expression)
    expression = rebuilt(expression, [stable(arg) for arg in expression.args])
    for rule in RULES:
        better = rule(expression)
        if better is not None and better != expression:
            return stable(better)
    allowed = isinstance(expression, _ALGEBRA) or declared(expression)
    if not allowed or expression.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
        known = ", ".join(sorted(PRIMITIVES))
        raise ExpressionError(
            f"{expression} has no derivative rule ({type(expression).__name__})",
            instead=f"write it with + - * / ** and the functions {known}",
        )
    return expression


def rebuilt(expression: Expr, args: list[Expr]) -> Expr:
    """``expression`` with other arguments."""
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
    """``select(2 c, u, v) -> select(c, u, v)``

    A sum keeps every factor but a power of two: ``x - 0.7`` has the sign of the rounded ``x`` compared with
    the rounded 0.7, as in torch, where ``10 x - 7`` may round to the other side of zero.
    """
    if not isinstance(e, select):
        return None
    c, u, v = e.args
    scale = c.as_content_primitive()[0] if isinstance(c, Add) else c.as_coeff_Mul()[0]
    if isinstance(c, Add) and not is_power_of_two(scale):
        return None
    return select(c / abs(scale), u, v)


def settled_branches(e: Expr) -> Expr | None:
    """``select(c, f(select(c, u, w)), g(select(c, z, v))) -> select(c, f(u), g(v))``

    Within a branch its condition is settled, at any depth, and ``-c > 0`` fails where it holds.
    """
    if not isinstance(e, select):
        return None
    c, u, v = e.args
    return select(c, _settled(u, {c: True, -c: False}), _settled(v, {c: False}))


def _settled(e: Expr, holds: dict[Expr, bool]) -> Expr:
    """``e`` where each of these conditions holds or does not."""
    known: dict[Expr, Expr] = {}

    def settled(e: Expr) -> Expr:
        if not e.args:
            return e
        if e not in known:
            if isinstance(e, select) and e.args[0] in holds:
                known[e] = settled(e.args[1 if holds[e.args[0]] else 2])
            else:
                known[e] = rebuilt(e, [settled(arg) for arg in e.args])
        return known[e]

    return settled(e)


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
                    # Not by division: sympy would leave e^u e^-u as it is, which may be 0 * inf.
                    others = (f for f in e.args if f not in (grow, factor))
                    return Mul(*others, sigmoid(-u) ** times, sigmoid(u) ** (power - times))
    return None


def hyperbolic_quotient(e: Expr) -> Expr | None:
    """``sinh(u) / cosh(u)^n -> tanh(u) / cosh(u)^(n-1)``"""
    if not isinstance(e, Mul):
        return None
    for factor in e.args:
        if isinstance(factor, sinh):
            quotient = cosh(factor.args[0])
            powers = dict(other.as_base_exp() for other in e.args)
            if powers.get(quotient, Integer(0)).is_negative:
                return e / factor * quotient * tanh(factor.args[0])
    return None


def hyperbolic_square(e: Expr) -> Expr | None:
    """``1 - tanh(u)² -> cosh(u)^-2``, whose tails do not cancel, and back: ``1 - cosh(u)^-2 -> tanh(u)²``"""
    if not isinstance(e, Add):
        return None
    constant, _ = e.as_coeff_Add()
    for term in e.args:
        scale, core = term.as_coeff_Mul()
        base, power = core.as_base_exp()
        if constant == 0 or scale != -constant or (type(base), power) not in _SQUARES:
            continue
        return e - constant - term + constant * _SQUARES[type(base), power](base.args[0])
    return None


_SQUARES: dict[tuple[type, Expr], Callable[[Expr], Expr]] = {
    (tanh, Integer(2)): lambda u: cosh(u) ** -2,
    (cosh, Integer(-2)): lambda u: tanh(u) ** 2,
}


def squared_sum(e: Expr) -> Expr | None:
    """``1 ± 2 sin(u) cos(u) -> (sin(u) ± cos(u))²``, which is never negative"""
    if not isinstance(e, Add):
        return None
    constant, _ = e.as_coeff_Add()
    for term in e.args:
        scale, core = term.as_coeff_Mul()
        for sine in core.atoms(sin):
            u = sine.args[0]
            if constant != 0 and core == sin(u) * cos(u) and abs(scale) == 2 * constant:
                square = (sin(u) + scale / (2 * constant) * cos(u)) ** 2
                return e - constant - term + constant * square
    return None


def magnitude(e: Expr) -> Expr | None:
    """``u sign(u) -> |u|``"""
    if not isinstance(e, Mul):
        return None
    for factor in e.args:
        if isinstance(factor, sympy.sign) and factor.args[0] in e.args:
            return e / factor / factor.args[0] * sympy.Abs(factor.args[0])
    return None


def common_denominator(e: Expr) -> Expr | None:
    """``1/d - |x|/d² -> 1/d²`` for ``d = 1 + |x|``: fractions added up where the sum has fewer terms"""
    if not isinstance(e, Add) or len(e.args) > _MAX_TERMS:
        return None
    bases = {b for term in e.args for b, power in _powers(term).items() if _is_divisor(b, power)}
    for base in sorted(bases, key=sympy.default_sort_key):
        powers = [_powers(term).get(base, Integer(0)) for term in e.args]
        least = min(powers)
        if all((power - least).is_Integer and power.is_negative for power in powers):
            numerator = Add(*(term / base**least for term in e.args))
            if _terms(numerator) > _MAX_TERMS:
                continue
            numerator = sympy.expand(numerator)
            if len(Add.make_args(numerator)) < len(e.args):
                return numerator * base**least
    return None


def _terms(e: Expr) -> int:
    """How many terms expand() writes out at most, those of denominators and of roots included."""
    if isinstance(e, Add):
        return sum(map(_terms, e.args))
    if isinstance(e, Mul):
        return math.prod(map(_terms, e.args))
    if isinstance(e, Pow) and e.exp.is_Rational:
        return _terms(e.base) ** math.ceil(abs(e.exp))
    return 1


def _powers(term: Expr) -> dict[Expr, Expr]:
    return dict(factor.as_base_exp() for factor in Mul.make_args(term))


def _is_divisor(base: Expr, power: Expr) -> bool:
    return isinstance(base, Add) and bool(power.is_Rational and power.is_negative)


def logarithms(e: Expr) -> Expr | None:
    """``log(e^u + e^v + …) -> logsumexp(u, v, …)``, ``log(1+u) -> log1p(u)``,
    ``log(cosh(u)) -> softplus(2u) - u - log(2)``
    """
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
        powers = [p for p in map(_exponent, inside.args) if p is not None]
        if len(powers) == len(inside.args):
            return logsumexp(*powers)
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
    form = known.sums.get(shift) if (known := declared(f)) else None
    return form(f.args[0]) if form else None


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
    if not isinstance(e, Mul) or not any(transcendental(factor) for factor in e.args):
        return None
    sums = [factor for factor in e.args if _may_overflow(factor)]
    terms = math.prod(len(f.as_base_exp()[0].args) ** f.as_base_exp()[1] for f in sums)
    if not sums or terms > _MAX_TERMS:
        return None
    rest = e / sums[0]
    return Add(*(rest * term for term in sympy.expand(sums[0]).args))


def transcendental(e: Expr) -> set[Expr]:
    """The function values ``e`` contains that are neither powers nor piecewise linear."""
    return e.atoms(sympy.Function) - kinked(e)


def _may_overflow(factor: Expr) -> bool:
    """Whether ``factor`` is a polynomial sum, or a power of one, of degree two or more."""
    base, power = factor.as_base_exp()
    if not (isinstance(base, Add) and power.is_Integer and power > 0):
        return False
    symbols = sorted(base.free_symbols, key=lambda s: s.name)
    return (
        bool(base.is_polynomial(*symbols)) and sympy.Poly(base, *symbols).total_degree() * power > 1
    )


RULES: tuple[Callable[[Expr], Expr | None], ...] = (
    exact_numbers,
    extremes,
    complement,
    condition_scale,
    settled_branches,
    merged_branches,
    logistic_quotient,
    logistic_product,
    hyperbolic_quotient,
    hyperbolic_square,
    squared_sum,
    magnitude,
    common_denominator,
    logarithms,
    cancelling_sums,
    paired_exponentials,
    vanishing_times_polynomial,
)
"""Tried in this order; the first that applies is taken."""
