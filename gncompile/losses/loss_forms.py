"""Losses as textbooks write them, in forms that neither overflow nor cancel.

``-y log σ(z) - (1-y) log(1-σ(z))`` becomes ``y softplus(-z) + (1-y) softplus(z)``, whose curvature is visibly
``σ(z) σ(-z)``; as written, both terms cancel in one tail.
"""

from __future__ import annotations

import sympy
from sympy import Add, Expr, Mul, exp, log

from ..functions.primitives import logsumexp
from ..functions.stable_forms import stable

ROUNDS = 3


def stable_loss(expression: Expr) -> Expr:
    """The same loss with its logarithms taken apart, those of sums of exponentials kept whole, and stable.

    >>> z1, z2, z3 = sympy.symbols("z1 z2 z3", real=True)
    >>> stable_loss(log(exp(z1) / (exp(z1) + exp(z2) + exp(z3))))
    z1 - logsumexp(z1, z2, z3)
    """
    for _ in range(
        ROUNDS
    ):  # what is stable may have a logarithm to take apart, and the other way round
        apart = expression.replace(log, _apart) if expression.has(log) else expression
        before, expression = expression, stable(apart)
        if before == expression:
            break
    return expression


def _apart(inside: Expr) -> Expr:
    """``log(u v^n) = log u + n log v`` for positive factors, and each ``log Σ e^u`` as one function."""
    inside = sympy.together(inside) if _is_complement(inside) else inside
    whole = sympy.expand_log(log(inside), deep=False)
    if not whole.has(log):
        return whole
    return whole.xreplace({part: _log_sum(part.args[0]) for part in whole.atoms(log)})


def _is_complement(inside: Expr) -> bool:
    """Whether ``inside`` is one minus a quotient of exponentials, as in ``log(1 - 1/(1 + e^-z))``."""
    return isinstance(inside, Add) and any(
        factor.is_Pow and factor.exp.is_negative and factor.base.has(exp)
        for term in inside.args
        for factor in Mul.make_args(term)
    )


def _log_sum(inside: Expr) -> Expr:
    """``log Σ_i c_i e^(u_i) = logsumexp(u_i + log c_i)``."""
    terms = [_exponent(term) for term in Add.make_args(inside)]
    exponents = [term for term in terms if term is not None]
    if len(exponents) < max(2, len(terms)) or all(e.is_number for e in exponents):
        return log(inside)
    return logsumexp(*exponents)


def _exponent(term: Expr) -> Expr | None:
    """The logarithm of ``c e^u`` with ``c > 0``, or of a positive number; else None."""
    scale, core = term.as_coeff_Mul()
    if core == 1 or isinstance(core, exp):
        return (core.args[0] if isinstance(core, exp) else 0) + log(scale) if scale > 0 else None
    return None
