"""Kinks and jumps of a function of one variable, found by evaluation on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mpmath
import sympy
from sympy import Expr

from .derive import PointwiseRule
from .precise import Function, Number, precise_function, real_value
from .primitives import kinked, select
from .probe_points import KINK_OFFSET, Domain, possible_kinks

DIGITS = 30
SHOWN = 9  # digits of what is found


@dataclass(frozen=True)
class Kink:
    """A point ``at`` which the slope, or with ``jump`` the value, is not continuous."""

    at: float
    before: float
    after: float
    taken: float
    jump: float

    def __str__(self) -> str:
        jump = f", a jump of the value by {self.jump:g}" if self.jump else ""
        slopes = f"slope {self.before:g} before, {self.after:g} after, {self.taken:g} taken"
        return f"x = {self.at:g}: {slopes}{jump}"


def jumps(expression: Expr, rule: PointwiseRule, domain: Domain) -> tuple[Kink, ...]:
    """The points of ``domain`` where ``expression``, whose ``rule`` is given, is not continuous."""
    (x,) = rule.arguments
    with mpmath.workdps(DIGITS):
        breaks = possible_kinks(sympy.Tuple(expression, rule.value), x, domain)
        value, slope = precise_function(rule.value, (x,)), precise_function(rule.slopes[0], (x,))
        return tuple(kink for kink in kinks_of(breaks, value, slope) if kink.jump)


def kinks_of(breaks: tuple[Number, ...], value: Function, slope: Function) -> Iterator[Kink]:
    """Those of the possible ``breaks`` that are kinks or jumps; in the working precision of mpmath."""
    for at in breaks:
        step = mpmath.mpf(10) ** -12 * (1 + abs(at))
        known = (real_value(value, at + step), real_value(value, at - step))
        values = [v for v in known if v is not None]
        known_slopes = (real_value(slope, x) for x in (at - step, at + step, at))
        slopes = [v for v in known_slopes if v is not None]
        if len(values) < 2 or len(slopes) < 3:
            continue
        before, after, taken = slopes
        scale = 1 + abs(before) + abs(after)
        jump = values[0] - values[1]
        jump = jump if abs(jump) > KINK_OFFSET * scale else 0
        if jump or abs(after - before) > KINK_OFFSET * scale:
            yield Kink(*(float(mpmath.nstr(v, SHOWN)) for v in (at, before, after, taken, jump)))


PROBES = 5


def has_jump(expression: Expr, along: sympy.Symbol) -> bool:
    """Whether an expression in several variables may jump as one of them moves.

    That is where one of its conditions changes its sign.

    Both branches are compared at a few points where ``c = 0``, found by solving for a variable in which ``c``
    is linear; where there is none, it counts as a jump.
    """
    conditions = {_side(part) for part in kinked(expression)}
    return any(_jumps_across(expression, c) for c in conditions if c.has(along))


def _side(part: Expr) -> Expr:
    """The condition of a part, for which and for whose opposite there is one kink."""
    c = part.args[0]
    return -c if c.could_extract_minus_sign() else c


def _jumps_across(expression: Expr, c: Expr) -> bool:
    above, below = (
        expression.xreplace({p: _branch(p, c, sign) for p in kinked(expression) if _side(p) == c})
        for sign in (1, -1)
    )
    gap = above - below
    for symbol in sorted(c.free_symbols, key=lambda s: s.name):
        slope = sympy.diff(c, symbol)
        if slope.has(symbol) or slope == 0 or kinked(c):
            continue
        on_plane = gap.xreplace({symbol: -c.xreplace({symbol: sympy.Integer(0)}) / slope})
        others = sorted(on_plane.free_symbols, key=lambda s: s.name)
        for probe in range(PROBES if others else 1):
            at = {s: sympy.Rational(3 * probe + i + 1, 7) for i, s in enumerate(others)}
            size = on_plane.xreplace(at).evalf(DIGITS)
            if not (size.is_number and abs(size) < KINK_OFFSET):
                return True
        return False
    return bool(gap != 0)


def _branch(part: Expr, c: Expr, sign: int) -> Expr:
    """What a part is where ``c`` has this sign."""
    above = sign if part.args[0] == c else -sign
    if isinstance(part, select):
        return part.args[1] if above > 0 else part.args[2]
    return above * (part.args[0] if isinstance(part, sympy.Abs) else sympy.Integer(1))
