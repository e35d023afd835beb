"""Convexity in several variables by the rules of composition, as in disciplined convex programming.

An affine function is convex and concave. Convex are

    f + g,  c f for c ≥ 0        f, g convex; where c ≤ 0, f concave
    exp(f), softplus(f), logsumexp(f, g, …), fᵖ for f ≥ 0 and p ≥ 1
                                 increasing convex functions of convex ones
    u², u⁴, …, |u|, cosh(u)      convex functions of an affine u
    √(c + u² + v² + …)           a norm of affine u, v, … and √c
    select(f - g, f, g)          the larger of two convex ones

and what :mod:`~gncompile.functions.convexity` proves of one variable alone. ``-f`` is concave where ``f`` is
convex. A yes is a proof; a no says nothing.
"""

from __future__ import annotations

from collections.abc import Collection

import sympy
from sympy import Expr, Symbol

from .convexity import is_convex_in_pieces, is_nonnegative
from .primitives import expm1, kinked, log1p, logsumexp, select, softplus

INCREASING = (sympy.exp, expm1, softplus, logsumexp)
"""Convex and increasing in each argument."""
CONVEX = (sympy.Abs, sympy.cosh)
CONCAVE = (sympy.log, log1p)
"""Concave and increasing."""


def is_convex(e: Expr, variables: Collection[Symbol], sign: int = 1) -> bool:
    """Whether rules prove ``sign · e`` convex in the ``variables`` together."""
    if is_affine(e, variables):
        return True
    if isinstance(e, sympy.Add) and all(is_convex(term, variables, sign) for term in e.args):
        return True
    if isinstance(e, sympy.Mul):
        scale, rest = e.as_independent(*variables, as_Add=False)
        if scale != 1 and (is_nonnegative(scale) or is_nonnegative(-scale)):
            turned = sign if is_nonnegative(scale) else -sign
            return is_convex(rest, variables, turned)
    if isinstance(e, CONCAVE):
        return sign < 0 and is_convex(e.args[0], variables, -1)
    if sign > 0 and _is_composed(e, variables):
        return True
    return _in_one_variable(sign * e, variables)


def is_affine(e: Expr, variables: Collection[Symbol]) -> bool:
    """Whether ``e`` is seen to be affine in the ``variables`` together."""
    if not e.has(*variables):
        return True
    if isinstance(e, sympy.Add):
        return all(is_affine(term, variables) for term in e.args)
    if isinstance(e, sympy.Mul):
        _, rest = e.as_independent(*variables, as_Add=False)
        return rest != e and is_affine(rest, variables)
    return e in variables


def _is_composed(e: Expr, variables: Collection[Symbol]) -> bool:
    """Whether ``e`` is a convex function of what keeps it convex."""
    if isinstance(e, INCREASING):
        return all(is_convex(arg, variables) for arg in e.args)
    if isinstance(e, CONVEX):
        return is_affine(e.args[0], variables)
    if isinstance(e, select):
        condition, above, below = e.args
        ratio = sympy.cancel((above - below) / condition)
        return bool(ratio.is_positive) and all(is_convex(f, variables) for f in (above, below))
    if isinstance(e, sympy.Pow) and e.exp == sympy.Rational(1, 2):
        return all(_is_square(term, variables) for term in sympy.Add.make_args(e.base))
    if isinstance(e, sympy.Pow) and e.exp.is_number and e.exp >= 1:
        even = e.exp.is_even and is_affine(e.base, variables)
        return even or (is_nonnegative(e.base) and is_convex(e.base, variables))
    return False


def _is_square(term: Expr, variables: Collection[Symbol]) -> bool:
    """``c u²`` of an affine ``u``, or a number, not negative."""
    scale, rest = term.as_independent(*variables, as_Add=False)
    base, power = rest.as_base_exp()
    square = rest == 1 or (power == 2 and is_affine(base, variables))
    return square and is_nonnegative(scale)


def _in_one_variable(e: Expr, variables: Collection[Symbol]) -> bool:
    """Whether ``e`` has one of the ``variables`` only, and is proved convex in it."""
    own = sorted(e.free_symbols & set(variables), key=lambda symbol: symbol.name)
    if len(own) != 1:
        return False
    (z,) = own
    return is_convex_in_pieces(e, z) if kinked(e) else is_nonnegative(sympy.diff(e, z, 2))
