"""What kind of function a transfer function is: found out, not declared.

Rules of sign, parity and range prove what they can; what they cannot is looked at with 30 digits at many
points, far out included, and reported as *seen*. A property denied is always shown by a counterexample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import mpmath
import sympy
from sympy import Expr, Symbol

from .convexity import is_nonnegative
from .kinks import DIGITS, SHOWN, Kink, kinks_of
from .precise import Function, Number, precise_function, real_value
from .primitives import declared, select, sigmoid
from .probe_points import Domain, dense, possible_kinks, probe_points
from .stable_forms import stable
from .transfer import TransferFunction

T = TypeVar("T")
Evidence = Literal["proved", "seen"]
Monotone = Literal[
    "increasing", "non-decreasing", "decreasing", "non-increasing", "constant", "neither"
]
Parity = Literal["odd", "even", "neither"]

FAR = (1e3, 1e6, 1e9, 1e12)


@dataclass(frozen=True)
class Finding(Generic[T]):
    """A property and how it is known: by proof or counterexample, or because nothing else was seen."""

    value: T
    evidence: Evidence

    def __str__(self) -> str:
        return (
            f"{self.value} ({'proved' if self.evidence == 'proved' else 'seen at sample points'})"
        )


@dataclass(frozen=True)
class Classification:
    """Properties of one transfer function on its domain; see :func:`classify`.

    ``bounds`` are its infimum and supremum, ``lipschitz`` the supremum of ``|f'|``; both may be infinite.
    """

    piecewise_linear: Finding[bool]
    monotone: Finding[Monotone]
    parity: Finding[Parity]
    bounds: Finding[tuple[float, float]]
    lipschitz: Finding[float]
    kinks: tuple[Kink, ...]

    def lines(self) -> list[str]:
        """One line a property."""
        low, high = self.bounds.value
        bounded = "bounded" if math.isfinite(high - low) else "unbounded"
        between = Finding(f"{bounded}, between {low:g} and {high:g}", self.bounds.evidence)
        linear = "yes" if self.piecewise_linear.value else "no"
        kinks = [str(kink) for kink in self.kinks] or ["none"]
        return [
            f"piecewise linear  {Finding(linear, self.piecewise_linear.evidence)}",
            f"monotone          {self.monotone}",
            f"parity            {self.parity}",
            f"range             {between}",
            f"Lipschitz         {Finding(f'{self.lipschitz.value:g}', self.lipschitz.evidence)}",
            *(f"{'kinks' if i == 0 else '':<18}{kink}" for i, kink in enumerate(kinks)),
        ]


def classify(function: TransferFunction) -> Classification:
    """The properties of ``function`` with its parameters' values, on its domain."""
    rule, x, domain = function.rule, function.argument, function.domain
    with mpmath.workdps(DIGITS):
        value, slope = precise_function(rule.value, (x,)), precise_function(rule.slopes[0], (x,))
        second = precise_function(rule.seconds[0, 0], (x,))
        breaks = possible_kinks(rule.value, x, domain)
        points = sorted({*probe_points(domain, breaks), *dense(domain), *breaks})
        slopes = _range(slope, points, domain)
        kinks = tuple(kinks_of(breaks, value, slope))
        jumps = [kink.jump for kink in kinks if kink.jump]
        return Classification(
            _piecewise_linear(rule.piecewise_linear, second, points),
            _monotone(rule.slopes[0], slope, slopes, points, jumps),
            _parity(rule.value, x, value, domain),
            _bounds(rule.value, value, points, function),
            _lipschitz(slopes, rule.piecewise_linear, jumps),
            kinks,
        )


def _lipschitz(
    slopes: tuple[float, float], piecewise_linear: bool, jumps: list[float]
) -> Finding[float]:
    if jumps:
        return Finding(math.inf, "proved")
    largest = max(abs(bound) for bound in slopes)
    return Finding(largest, "proved" if piecewise_linear else "seen")


def _piecewise_linear(shown: bool, second: Function, points: list[Number]) -> Finding[bool]:
    if shown:
        return Finding(True, "proved")
    curved = any(real_value(second, x) not in (None, 0) for x in points)
    return Finding(not curved, "proved" if curved else "seen")


def _monotone(
    derived: Expr,
    slope: Function,
    bounds: tuple[float, float],
    points: list[Number],
    jumps: list[float],
) -> Finding[Monotone]:
    low, high = min(bounds[0], *jumps, 0), max(bounds[1], *jumps, 0)
    if low < 0 < high:
        return Finding("neither", "proved")
    if low == high == 0:
        return Finding("constant", "proved" if derived == 0 else "seen")
    strict = all(real_value(slope, x) != 0 for x in points)
    signed = derived if high > 0 else -derived
    evidence: Evidence = "proved" if is_nonnegative(signed) else "seen"
    if not strict:
        return Finding("non-decreasing" if high > 0 else "non-increasing", evidence)
    positive = bool(signed.is_positive) or _product_of_positives(signed)
    return Finding(
        "increasing" if high > 0 else "decreasing",
        "proved" if positive and evidence == "proved" else "seen",
    )


def _product_of_positives(e: Expr) -> bool:
    """Whether every factor is a positive number or a function without zeros."""
    return all(f.is_positive or isinstance(f, sigmoid | sympy.exp) for f in sympy.Mul.make_args(e))


def _parity(value: Expr, x: Symbol, function: Function, domain: Domain) -> Finding[Parity]:
    if domain[0] != -domain[1]:
        return Finding("neither", "proved")
    signs = {1, -1}
    for point in probe_points(domain, ()):
        right, left = real_value(function, point), real_value(function, -point)
        if right is None or left is None or not mpmath.isfinite(right):
            continue
        slack = mpmath.mpf(10) ** (5 - DIGITS) * (1 + abs(right))
        signs = {sign for sign in signs if abs(left - sign * right) <= slack}
    if len(signs) != 1:
        return Finding("neither", "proved" if not signs else "seen")
    (sign,) = signs
    mirrored = stable(value.xreplace({x: -x}))
    shown = mirrored == sign * value or sympy.expand(mirrored - sign * value) == 0
    return Finding("even" if sign > 0 else "odd", "proved" if shown else "seen")


# Ranges ----------------------------------------------------------------------------------------------------


def _bounds(
    derived: Expr, value: Function, points: list[Number], function: TransferFunction
) -> Finding[tuple[float, float]]:
    seen = _range(value, points, function.domain)
    proved = interval(derived, function.argument, function.domain)
    agree = all(
        a == b or math.isclose(a, b, rel_tol=1e-8) for a, b in zip(seen, proved, strict=True)
    )
    return Finding(seen, "proved" if agree else "seen")


def _range(function: Function, points: list[Number], domain: Domain) -> tuple[float, float]:
    """Infimum and supremum as seen: on the points, between them by bisection, and towards the ends."""
    near = [v for v in (real_value(function, x) for x in points) if v is not None]
    low, high = min(near), max(near)
    for a, _, c in zip(points, points[1:], points[2:], strict=False):
        for sign in (1, -1):
            extreme = _peak(_signed(function, sign), a, c)
            if extreme is not None:
                low, high = min(low, sign * extreme), max(high, sign * extreme)
    for tail in _tails(function, domain):
        if tail[-1] > high or tail[-1] < low:
            settled = abs(tail[-1] - tail[-2]) <= 0.1 * abs(tail[1] - tail[0])
            end = tail[-1] if settled else mpmath.sign(tail[-1]) * mpmath.inf
            low, high = min(low, end), max(high, end)
    return _rounded(low), _rounded(high)


def _signed(function: Function, sign: int) -> Callable[[Number], Number]:
    """``sign · f``, and below everything where ``f`` has no value."""

    def signed(x: Number) -> Number:
        value = real_value(function, x)
        return -mpmath.inf if value is None else sign * value

    return signed


def _peak(function: Callable[[Number], Number], a: Number, c: Number) -> Number | None:
    """The largest value between ``a`` and ``c`` if the middle is above both ends, by golden section."""
    ratio = (mpmath.sqrt(5) - 1) / 2
    b, d = c - ratio * (c - a), a + ratio * (c - a)
    fb, fd = function(b), function(d)
    if max(fb, fd) <= max(function(a), function(c)):
        return None
    for _ in range(30):
        if fb > fd:
            c, d, fd = d, b, fb
            b = c - ratio * (c - a)
            fb = function(b)
        else:
            a, b, fb = b, d, fd
            d = a + ratio * (c - a)
            fd = function(d)
    return max(fb, fd)


def _tails(function: Function, domain: Domain) -> Iterator[list[Number]]:
    """Values towards each end of the domain."""
    for end, inward in zip(domain, (1, -1), strict=True):
        at = [-inward * x if math.isinf(end) else end + inward / x for x in FAR]
        values = [v for v in (real_value(function, x) for x in at) if v is not None]
        if len(values) == len(FAR):
            yield values


def _rounded(value: Number) -> float:
    return float(mpmath.nstr(value, SHOWN)) if mpmath.isfinite(value) else float(value)


INFINITE = (-math.inf, math.inf)


def interval(e: Expr, x: Symbol, domain: Domain) -> tuple[float, float]:
    """An interval that surely holds all values of ``e``, by the ranges of functions and interval sums."""
    if e.is_number:
        return float(e), float(e)
    if e == x:
        return domain
    known = declared(e)
    if known and not isinstance(e, select):
        return known.values
    if isinstance(e, sympy.Add):
        parts = [interval(term, x, domain) for term in e.args]
        return sum(low for low, _ in parts), sum(high for _, high in parts)
    if isinstance(e, sympy.Mul):
        scale, rest = e.as_coeff_Mul()
        if scale != 1:
            ends = [float(scale) * end for end in interval(rest, x, domain)]
            return min(ends), max(ends)
    if isinstance(e, sympy.Pow) and e.exp.is_even and e.exp > 0:
        return 0.0, math.inf
    if isinstance(e, select):
        return _branches(e, x, domain)
    return INFINITE


def _branches(e: select, x: Symbol, domain: Domain) -> tuple[float, float]:
    """The hull of both branches, each where its condition can hold if that is ``x`` against a number."""
    condition, above, below = e.args
    halves = [domain, domain]
    if condition.is_polynomial(x) and sympy.degree(condition, x) == 1:
        slope, shift = sympy.Poly(condition, x).all_coeffs()
        border = float(-shift / slope)
        sides = [(max(domain[0], border), domain[1]), (domain[0], min(domain[1], border))]
        halves = sides if slope > 0 else sides[::-1]
    hulls = [
        interval(branch, x, half)
        for branch, half in zip((above, below), halves, strict=True)
        if half[0] <= half[1]
    ]
    return min(low for low, _ in hulls), max(high for _, high in hulls)
