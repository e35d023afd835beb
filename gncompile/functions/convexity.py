"""Is a separable loss convex in the network output? A proof if rules give one, else a check.

Gauss-Newton matrices need ``e''(z) ≥ 0`` for every output ``z`` and every target ``y``. The rules
of :func:`is_nonnegative` prove most smooth losses, and piece by piece most losses with kinks
(:func:`is_convex_in_pieces`). Where they do not, ``e''`` is evaluated on a grid and at its minima between,
with as many digits as its sign needs however much its terms cancel, and ``e`` and ``e'`` are compared on both
sides of every kink. A counterexample refuses the loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import mpmath
import sympy

from .float_values import float_function, float_value
from .precise import Function, Number, precise_function, real_value
from .primitives import declared, kinked, select

Verdict = Literal["convex", "not convex", "unproved"]


@dataclass(frozen=True)
class Convexity:
    """``verdict``, its ``reason``, and for ``"not convex"`` a ``witness`` point ``(z, y)``.

    ``"unproved"`` means that neither a proof nor a counterexample was found on the grid.
    """

    verdict: Verdict
    reason: str
    witness: tuple[float, float] | None = None


@lru_cache(maxsize=256)
def convexity(
    expression: sympy.Expr,
    output: sympy.Symbol,
    target: sympy.Symbol,
    slope: sympy.Expr,
    curvature: sympy.Expr,
    targets: tuple[float, float] = (-math.inf, math.inf),
) -> Convexity:
    """The verdict on ``∂²e/∂z² ≥ 0`` for all ``z`` and all ``y`` in ``targets``."""
    kinks = _kinks(expression, output)
    signed = curvature
    if targets[0] >= 0:
        signed = curvature.subs(target, sympy.Symbol(target.name, nonnegative=True))
    proved = is_nonnegative(signed)
    if proved and not kinks:
        return Convexity("convex", f"e'' = {curvature} is non-negative")
    check = _GridCheck(expression, output, target, slope, curvature, targets)
    found = check.negative_curvature() or check.bad_kink(kinks)
    if found:
        return found
    if kinks and is_convex_in_pieces(expression, output):
        return Convexity("convex", "every piece is convex, and e' falls at no kink between them")
    if proved:
        return Convexity(
            "unproved", "e'' ≥ 0 between the kinks; e' was seen not to fall at any of them"
        )
    return Convexity("unproved", f"e'' = {curvature} was seen to be non-negative on a dense grid")


def is_nonnegative(expression: sympy.Expr) -> bool:
    """Whether rules prove ``expression ≥ 0``: squares, ``exp``, ``σ``, their sums and products."""
    known = declared(expression)
    if expression.is_nonnegative or (known and known.values[0] >= 0):
        return True
    if isinstance(expression, sympy.Add):
        return all(is_nonnegative(term) for term in expression.args) or _is_sech_squared(expression)
    if isinstance(expression, sympy.Mul):
        doubtful = [factor for factor in expression.args if not is_nonnegative(factor)]
        return len(doubtful) % 2 == 0 and all(factor.is_nonpositive for factor in doubtful)
    if isinstance(expression, sympy.Pow):
        base, exponent = expression.args
        return bool(exponent.is_even) or is_nonnegative(base)
    if isinstance(expression, select):
        return all(is_nonnegative(branch) for branch in expression.args[1:])
    return False


def _is_sech_squared(expression: sympy.Expr) -> bool:
    """``1 - tanh²u``."""
    u = sympy.Wild("u")
    return expression.match(1 - sympy.tanh(u) ** 2) is not None


def _kinks(expression: sympy.Expr, output: sympy.Symbol) -> tuple[sympy.Expr, ...]:
    """What changes sign where ``expression`` may have a kink in ``output``."""
    found = {part.args[0] for part in kinked(expression)}
    return tuple(sorted((k for k in found if k.has(output)), key=sympy.default_sort_key))


def is_convex_in_pieces(expression: sympy.Expr, output: sympy.Symbol) -> bool:
    """Whether ``e`` is proved convex in ``z`` as a sum of smooth convex terms and of terms ``f(u)``.

    ``u`` is affine in ``z`` (a residual ``z - y``, a margin ``1 - y z``), so ``f(u)`` is convex if ``f`` is.
    That holds if each piece of ``f`` between kinks is convex, and at no kink ``f`` jumps or ``f'`` falls.
    """
    kinked, smooth = sympy.sift(
        sympy.Add.make_args(expression), lambda term: bool(_kinks(term, output)), binary=True
    )
    if not is_nonnegative(sympy.diff(sympy.Add(*smooth), output, 2)):
        return False
    together = [sympy.Add(*kinked)]
    return any(all(_is_convex_term(term, output) for term in terms) for terms in (together, kinked))


def _is_convex_term(term: sympy.Expr, output: sympy.Symbol) -> bool:
    u = sympy.Symbol("u", real=True)
    for part in sorted(kinked(term), key=sympy.default_sort_key):
        affine = sympy.expand(part.args[0])
        slope = affine.coeff(output)
        if slope == 0 or (affine - slope * output).has(output):
            continue
        at = sympy.expand((u - (affine - slope * output)) / slope)
        of_u = term.subs(output, at).replace(lambda e: e.is_Add, sympy.expand)
        if of_u.free_symbols <= {u}:
            return _is_convex_function(of_u, u)
    return False


def _is_convex_function(f: sympy.Expr, u: sympy.Symbol) -> bool:
    """Whether ``f(u)`` is proved convex; not if it has a kink elsewhere than at a polynomial's roots."""
    kinks: set[sympy.Expr] = {sympy.Integer(0)}  # more points than kinks do no harm
    for kink in _kinks(f, u):
        for sign in (1, -1):  # of what stands between bars
            polynomial = kink.replace(sympy.Abs, lambda inner, sign=sign: sign * inner)
            if not polynomial.is_polynomial(u):
                return False
            kinks |= set(sympy.real_roots(sympy.Poly(polynomial, u)))
    points = sorted(kinks)
    inner = [(low + high) / 2 for low, high in itertools.pairwise(points)]
    pieces = [_piece(f, u, x) for x in (points[0] - 1, *inner, points[-1] + 1)]
    t = sympy.Symbol("t", positive=True)
    ends = [
        (points[0] - t,),
        *((x + t, y - t) for x, y in itertools.pairwise(points)),
        (points[-1] + t,),
    ]
    for piece, from_end in zip(pieces, ends, strict=True):
        second = sympy.diff(piece, u, 2)
        if not any(is_nonnegative(second.subs(u, v)) for v in (u, *from_end)):
            return False
    for x, (below, above) in zip(points, itertools.pairwise(pieces), strict=True):
        step = above - below
        if sympy.simplify(step.subs(u, x)) != 0:
            return False
        if not sympy.simplify(sympy.diff(step, u).subs(u, x)).is_nonnegative:
            return False
    return True


def _piece(f: sympy.Expr, u: sympy.Symbol, x: sympy.Expr) -> sympy.Expr:
    """The smooth function that ``f`` is between the two kinks around ``x``."""

    def sign(of: sympy.Expr) -> sympy.Expr:
        return sympy.sign(of.subs(u, x))

    f = f.replace(select, lambda c, above, below: above if sign(c) > 0 else below)
    return f.replace(sympy.Abs, lambda inner: sign(inner) * inner).replace(sympy.sign, sign)


DIGITS = (30, 60, 120, 240, 480, 960)
"""Digits tried in turn until two answers agree."""
AGREE = 1e-6
STEP = 1e-20
KINK_TOLERANCE = 1e-14
"""What constants given in float64 can get wrong of a jump, or of a slope, relative to slopes beside it."""
FAR = (75.3, 101.0, 203.0, 499.0, 997.0, 3e3, 1e4, 1e6)
"""Outputs where a loss may be infinite; it has to be convex where it is not."""


def _resolved(
    function: Function, plain: Callable[..., float], z: float | Number, y: float
) -> Number | None:
    """The value with its sign certain, or None where there is none; zero if no digits tell it from zero.

    ``y/σ(z) - y`` at ``z = 50`` loses 22 digits: two evaluations, in float64 (``plain``) and with 30 digits
    or with 30 and 60 and so on, must agree to :data:`AGREE`.
    """
    previous = float_value(plain, float(z), y)
    for digits in DIGITS:
        with mpmath.workdps(digits):
            value = real_value(function, z, y)
            if None not in (value, previous) and _agree(value, previous):
                return value
            previous = value
    return None if previous is None else mpmath.mpf(0)


def _agree(value: Number, previous: Number) -> bool:
    return bool(value == previous or abs(value - previous) <= AGREE * abs(value))


def _values(function: Function, points: Iterable[Number], y: float) -> list[Number] | None:
    """The function at several outputs, or None unless it has a value at all of them."""
    values = [real_value(function, z, y) for z in points]
    return None if None in values else values


def _grid() -> list[float]:
    """Outputs from 10⁻³ to 50, dense up to 10; steps that share no period with usual functions."""
    magnitudes = [
        1e-3,
        1e-2,
        0.03,
        0.1,
        14.7,
        20.3,
        30.1,
        50.0,
        *(0.1973 * k for k in range(1, 52)),
    ]
    return sorted([0.0, *magnitudes, *(-m for m in magnitudes)])


def _target_grid(targets: tuple[float, float]) -> list[float]:
    """Targets inside the declared range, its finite ends included."""
    usual = [-20.0, -3.7, -1.0, -0.31, 0.0, 0.5, 1.0, 2.3, 25.0]
    low, high = targets
    ends = [end for end in targets if math.isfinite(end)]
    middle = [(low + high) / 2] if len(ends) == 2 else []
    return sorted({*(y for y in usual if low <= y <= high), *ends, *middle}, key=abs)


class _GridCheck:
    """High-precision values of one loss on the grid."""

    def __init__(
        self,
        expression: sympy.Expr,
        output: sympy.Symbol,
        target: sympy.Symbol,
        slope: sympy.Expr,
        curvature: sympy.Expr,
        targets: tuple[float, float],
    ) -> None:
        self.symbols = (output, target)
        self.value, self.slope = self._function(expression), self._function(slope)
        self.curvature = self._function(curvature)
        self.plain = float_function(curvature, self.symbols)
        self.plain_value = float_function(expression, self.symbols)
        self.targets = _target_grid(targets)

    def _function(self, expression: sympy.Expr) -> Function:
        return precise_function(expression, self.symbols)

    def negative_curvature(self) -> Convexity | None:
        """A point where ``e''`` is negative or does not exist."""
        for y in self.targets:
            found: dict[float | Number, Number] = {}
            for z in sorted(_grid(), key=abs):
                value = self._curvature(z, y)
                if value is None or not self._has_value(z, y):
                    reason = f"e is not a finite real number at z = {z:g}, y = {y:g}"
                    return Convexity("not convex", reason, (z, y))
                if refused := self._counterexample(value, z, y):
                    return refused
                found[z] = value
            far = (sign * z for z in FAR for sign in (1, -1))
            for z in itertools.chain(far, self._minima(found, y)):
                if refused := self._counterexample(self._curvature(z, y), z, y):
                    return refused
        return None

    def _curvature(self, z: float | Number, y: float) -> Number | None:
        return _resolved(self.curvature, self.plain, z, y)

    def _has_value(self, z: float, y: float) -> bool:
        """Whether ``e`` is a real number or +∞."""
        if float_value(self.plain_value, z, y) is not None:
            return True
        value = _resolved(self.value, self.plain_value, z, y)
        return value is not None and value != -mpmath.inf

    def _counterexample(
        self, value: Number | None, z: float | Number, y: float
    ) -> Convexity | None:
        """The refusal of a negative ``e''`` if ``e`` itself lies above its chord there."""
        if value is None or not (mpmath.isfinite(value) and value < 0):
            return None
        with mpmath.workdps(DIGITS[-1]):
            step = mpmath.mpf(STEP) * (1 + abs(z))
            near = _values(self.value, (z - step, mpmath.mpf(z), z + step), y)
            if near is None or not near[0] + near[2] < 2 * near[1]:
                return None
        at = (float(z), y)
        reason = f"e'' = {mpmath.nstr(value, 4)} at z = {at[0]:g}, y = {y:g}"
        return Convexity("not convex", reason, at)

    def _minima(self, found: dict[float | Number, Number], y: float) -> Iterator[Number]:
        """Outputs between those of the grid where ``e''`` is least, by golden section."""
        points = sorted(found)
        ratio = (math.sqrt(5) - 1) / 2
        for low, middle, high in zip(points, points[1:], points[2:], strict=False):
            if not found[low] > found[middle] < found[high]:
                continue
            a, c = mpmath.mpf(low), mpmath.mpf(high)
            for _ in range(40):
                left, right = c - ratio * (c - a), a + ratio * (c - a)
                values = _values(self.curvature, (left, right), y)
                if values is None:
                    break
                a, c = (a, right) if values[0] < values[1] else (left, c)
            yield (a + c) / 2

    def bad_kink(self, kinks: tuple[sympy.Expr, ...]) -> Convexity | None:
        """A kink where ``e`` jumps or ``e'`` falls, by more than :data:`KINK_TOLERANCE`."""
        with mpmath.workdps(60):
            for kink, y in itertools.product(kinks, self.targets):
                for z in _sign_changes(self._function(kink), y):
                    step = mpmath.mpf(10) ** -30 * (1 + abs(z))
                    sides, at = (z - step, z + step), (round(float(z), 9), y)
                    values, slopes = _values(self.value, sides, y), _values(self.slope, sides, y)
                    if values is None or slopes is None:
                        reason = f"e is not a finite real number near z = {at[0]:g}, y = {y:g}"
                        return Convexity("not convex", reason, at)
                    jump, fall = abs(values[1] - values[0]), slopes[0] - slopes[1]
                    size = 1 + abs(slopes[0]) + abs(slopes[1])
                    if max(jump, fall) > KINK_TOLERANCE * size:
                        what = "e jumps" if jump > KINK_TOLERANCE * size else "e' falls"
                        return Convexity("not convex", f"{what} at z = {at[0]:g}, y = {y:g}", at)
        return None


def _sign_changes(function: Function, y: float) -> Iterator[Number]:
    """Outputs where ``function`` changes sign between neighbours of the grid, by bisection."""
    for low, high in itertools.pairwise(mpmath.mpf(z) for z in _grid()):
        below = function(low, y) > 0
        if below == (function(high, y) > 0):
            continue
        for _ in range(130):
            middle = (low + high) / 2
            low, high = (middle, high) if (function(middle, y) > 0) == below else (low, middle)
        yield high


@lru_cache(maxsize=256)
def unstable_point(
    formulas: tuple[sympy.Expr, ...],
    output: sympy.Symbol,
    target: sympy.Symbol,
    targets: tuple[float, float],
) -> tuple[str, str] | None:
    """Where a formula overflows at ``|z| ≤ 1000`` although its value is moderate, and what helps; or None.

    The formulas are evaluated in float64, whose range ends near ``exp(709)`` as float32's does near
    ``exp(88)``: ``exp(z)/(1 + exp(z))`` fails at 1000 here, and at 100 in a float32 run.
    """
    # A target of 0 or 1 would meet the factors y and 1 - y and report 0 · inf for a loss y e^z.
    y = min(_target_grid(targets), key=lambda target: abs(target - 0.5))
    for formula in formulas:
        plain = float_function(formula, (output, target))
        exact = precise_function(formula, (output, target))
        for z in (-1000.0, -100.0, 100.0, 1000.0):
            with mpmath.workdps(1000):
                value = real_value(exact, z, y)
            if value is not None and abs(value) < 1e30 and float_value(plain, z, y) is None:
                part = _overflowing_part(formula, (output, target), (z, y))
                where = "" if part == formula else f", in {part}"
                return f"{formula} at z = {z:g}, y = {y:g}{where}", _remedy(part)
    return None


def _overflowing_part(
    formula: sympy.Expr, symbols: tuple[sympy.Symbol, sympy.Symbol], at: tuple[float, float]
) -> sympy.Expr:
    """The first part that has no value in float64, although all that it is made of has one."""

    def has_none(part: sympy.Expr) -> bool:
        return float_value(float_function(part, symbols), *at) is None

    parts = (e for e in sympy.postorder_traversal(formula) if isinstance(e, sympy.Expr))
    return next(filter(has_none, parts), formula)


def _remedy(part: sympy.Expr) -> str:
    if part.is_Pow and part.exp.is_negative:
        return (
            f"{part.base} is all but 0 there, and is divided by: keep it away from 0 in the loss, say by "
            f"{part.base} + 1e-6"
        )
    return "write it with softplus, sigmoid, tanh or log1p, which do not overflow"
