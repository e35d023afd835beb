"""Kinks and jumps of a function of one variable, found by evaluation on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mpmath
import sympy
from sympy import Expr

from .derive import PointwiseRule
from .precise import Function, Number, precise_function, real_value
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
