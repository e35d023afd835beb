"""Selections as people write them: ``max``, ``finite(x)``, ``clamp(x, l, h)``, and one list of cases.

::

    select(u - v, u, v)                     →   max(u, v)
    select(3e38 - |x|, 1, 0)                →   finite(x)
    select(x - h, h, max(l, x))             →   clamp(x, l, h)
    select(u - v, select(w, a, x), x)       →   a  if u > v and w > 0;  x  otherwise
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import sympy
from sympy import Expr

from ..functions.primitives import LARGEST, select

clamp, finite, maximum, minimum = (
    sympy.Function(name, real=True) for name in ("clamp", "finite", "max", "min")
)

Condition = tuple[Expr, bool]
"""A value, and whether it is positive."""
Branch = tuple[Expr, Sequence[Condition]]


def readable(expression: Expr) -> Expr:
    """The expression with functions for the selections that have a name."""
    return expression.replace(lambda e: isinstance(e, select), _named)


def _named(e: select) -> Expr:
    condition, above, below = e.args
    size = LARGEST - condition
    if (above, below) == (1, 0) and isinstance(size, sympy.Abs):
        return finite(size.args[0])
    if condition == above - below:
        return maximum(above, below)
    if condition == below - above:
        return minimum(above, below)
    if isinstance(below, maximum) and condition == below.args[1] - above:
        return clamp(below.args[1], below.args[0], above)
    return e


def branches(e: select) -> tuple[list[Branch], Expr] | None:
    """Cases of nested selections with all conditions, and the value otherwise; None for a single one."""
    if not any(isinstance(part, select) for part in e.args[1:]):
        return None
    found = list(_walk(e, ()))
    otherwise = Counter(value for value, _ in found).most_common(1)[0][0]
    return [branch for branch in found if branch[0] != otherwise], otherwise


def _walk(e: Expr, given: tuple[Condition, ...]) -> Sequence[Branch]:
    if not isinstance(e, select):
        return [(e, given)]
    condition, above, below = e.args
    return [*_walk(above, (*given, (condition, True))), *_walk(below, (*given, (condition, False)))]


def sides(condition: Expr) -> tuple[Expr, Expr]:
    """``u`` and ``v`` of a value ``u - v`` that is compared with zero."""
    terms = sympy.Add.make_args(condition)
    less = [-term for term in terms if term.could_extract_minus_sign()]
    return sympy.Add(*(t for t in terms if not t.could_extract_minus_sign())), sympy.Add(*less)
