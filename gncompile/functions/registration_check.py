"""Is what was derived from a declaration true of it? Checked when it is declared, by evaluation.

The declared expression is evaluated with 100 digits and differentiated by central differences, which share
nothing with :mod:`gncompile.functions.derive`: with a step of 1e-20 the slope is good to 1e-40 and the second
derivative to 1e-39, relative to the function's higher derivatives.

What the backends make of the formulas is run in floating point and compared with the same digits, for a
formula may be true and its order of evaluation, or what rounding leaves of it, may not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mpmath
import sympy
from sympy import Expr, Symbol

from ..base.handed_down import handed_down
from ..errors import RegistrationError
from .derive import PointwiseRule
from .precise import Function, Number, precise_function, real_value
from .probe_points import KINK_OFFSET, Domain, possible_kinks, probe_points

DIGITS = 100
STEP = 1e-20
RELATIVE, ABSOLUTE = 1e-15, 1e-30
"""Far above the errors of the differences, far below any wrong rule."""

CONDITIONED = 1e-6
"""In float64, relative to a function and its derivatives: far above rounding, below any wrong code."""
KEPT = {"float32": (1e-3, 1e-6), "float64": (1e-9, 1e-14)}
"""How well the slope must be recovered from what is kept: relative to itself, and to the largest slope within
``±MODERATE``; or as well as it is computed from the argument."""
MODERATE = 10.0
LARGE = 1e30
"""Where the mathematics exceeds this, float32 need not be finite."""
FLOAT32_POINTS = (0.0, 1e-3, 1.0, 10.0, 30.0, 100.0)
FLOAT64_POINTS = (1000.0,)

Floats = tuple[float, float, float]
"""Value, slope and second derivative."""


@dataclass
class TransferCheck:
    """One declaration ``f(argument) = expression`` on ``domain`` and the rule derived from it."""

    name: str
    expression: Expr
    argument: Symbol
    domain: Domain
    rule: PointwiseRule
    declared_at: str

    def run(self) -> None:
        """Raise :class:`RegistrationError`, with the point and both values, for the first disagreement."""
        with mpmath.workdps(DIGITS):
            self.declared = self._function(self.expression)
            self.value = self._function(self.rule.value)
            self.slope = self._function(self.rule.slopes[0])
            self.second = self._function(self.rule.seconds[0, 0])
            self.kept = precise_function(
                self.rule.kept_slopes[0], (self.argument, self.rule.output)
            )
            # sympy's Max and Min have become branches in the derived value only.
            branches = sympy.Tuple(self.expression, self.rule.value)
            kinks = possible_kinks(branches, self.argument, self.domain)
            for x in probe_points(self.domain, kinks):
                self._check_point(x)
            for kink in kinks:
                self._check_kink(kink)
            self._check_floats(kinks)
            self._check_emitted(kinks)

    def _function(self, expression: Expr) -> Function:
        return precise_function(expression, (self.argument,))

    def _check_point(self, x: Number) -> None:
        here, first, second = self._differences(x, STEP)
        if not all(map(mpmath.isfinite, (here, first, second))):
            return
        _, finer, _ = self._differences(x, STEP / 1000)
        if abs(finer - first) > RELATIVE * (abs(first) + 1):
            return  # too steep for these steps, as sin(1e18 x): nothing can be said
        scale = 1 + abs(here) + abs(first) + abs(second)
        value = real_value(self.value, x)
        self._compare("value, rewritten to be stable,", x, here, value, scale)
        self._compare("slope", x, first, real_value(self.slope, x), scale)
        self._compare("second derivative", x, second, real_value(self.second, x), scale)
        kept = real_value(self.kept, x, here)
        self._compare("slope from what the backward pass keeps", x, first, kept, scale)

    def _differences(self, x: Number, step: float) -> tuple[Number, Number, Number]:
        """The declared function and its first two derivatives, by central differences."""
        h = mpmath.mpf(step) * max(1, abs(x))
        below, here, above = (real_value(self.declared, x + move) for move in (-h, 0, h))
        if here is None or below is None or above is None:
            raise self._undefined("the function", x)
        return here, (above - below) / (2 * h), (above - 2 * here + below) / h**2

    def _compare(self, what: str, x: Number, wanted: Number, got: Number, scale: Number) -> None:
        if got is None:
            raise self._undefined(f"the {what}", x)
        if not abs(got - wanted) <= RELATIVE * abs(wanted) + ABSOLUTE * scale:
            raise self._refusal(
                f"the {what} of the transfer function {self.name!r} is wrong at x = {_short(x)}\n"
                f"  expected: {_short(wanted)}, from the declared expression\n"
                f"  derived:  {_short(got)}",
                "declare it with the functions of gncompile.functions, whose derivatives are known, and "
                "please report this",
            )

    def _check_kink(self, kink: Number) -> None:
        """At a kink the slope is one of those beside it, or lies between them."""
        offset = KINK_OFFSET * (1 + abs(kink))
        before = real_value(self.slope, kink - offset)
        after = real_value(self.slope, kink + offset)
        here, value = real_value(self.slope, kink), real_value(self.value, kink)
        if value is None or not mpmath.isfinite(value):
            raise self._undefined("the function", kink)
        if here is None or not mpmath.isfinite(here):
            raise self._undefined("the slope", kink)
        assert before is not None  # both are probe points, checked by now
        assert after is not None
        low, high = min(before, after), max(before, after)
        slack = 1e-3 * (1 + abs(low) + abs(high))
        if not low - slack <= here <= high + slack:
            raise self._refusal(
                f"the slope of the transfer function {self.name!r} at its kink x = {_short(kink)} is "
                f"{_short(here)}, not between those beside it, {_short(low)} and {_short(high)}",
                "write it so that the branch taken at the kink, the last of select, has one of them",
            )

    def _check_floats(self, kinks: tuple[Number, ...]) -> None:
        """Finite numbers in float32, and far out in float64, wherever the mathematics is moderate."""
        import torch

        from .expressions import evaluate

        rule = self.rule
        formulas = {
            "value": (rule.value, self.value),
            "slope": (rule.slopes[0], self.slope),
            "second derivative": (rule.seconds[0, 0], self.second),
            "slope from what the backward pass keeps": (rule.kept_slopes[0], self.slope),
        }
        for dtype, at in (
            (torch.float32, [*FLOAT32_POINTS, *map(float, kinks)]),
            (torch.float64, FLOAT64_POINTS),
        ):
            points = [p for p in _signed(at) if self.domain[0] < p < self.domain[1]]
            if not points:
                continue
            x = torch.tensor(points, dtype=dtype)
            symbols = {self.argument: x, rule.output: evaluate(rule.value, {self.argument: x})}
            for what, (formula, exact) in formulas.items():
                finite = evaluate(formula, symbols).expand(len(points)).isfinite().tolist()
                for point, is_finite in zip(points, finite, strict=True):
                    value = None if is_finite else real_value(exact, point)
                    if value is not None and abs(value) < LARGE:
                        raise self._overflow(what, str(dtype).removeprefix("torch."), point, value)

    def _check_emitted(self, kinks: tuple[Number, ...]) -> None:
        """Every backend's value, slope, second derivative and kept slope, against many digits."""
        import torch

        rule = self.rule
        formulas = {"value": rule.value, "slope": rule.slopes[0], "second": rule.seconds[0, 0]}
        for dtype in (torch.float64, torch.float32):
            x = torch.tensor([float(p) for p in probe_points(self.domain, kinks)], dtype=dtype)
            exact = [self._moderate(p) for p in x.tolist()]
            for run in handed_down("backends").values():
                found = {what: run(e, {self.argument: x}) for what, e in formulas.items()}
                kept = {self.argument: x, rule.output: found["value"]}
                found["kept"] = run(rule.kept_slopes[0], kept)
                rows = zip(*(found[what].double().tolist() for what in found), strict=True)
                usable = [
                    (p, row, at)
                    for p, row, at in zip(x.tolist(), rows, exact, strict=True)
                    if at is not None and math.isfinite(row[0])
                ]
                if dtype == torch.float64:
                    for point, row, at in usable:
                        self._compare_emitted(point, row, at)
                self._compare_kept(str(dtype).removeprefix("torch."), usable)

    def _moderate(self, x: float) -> Floats | None:
        """Value, slope and second derivative at ``x`` if they are numbers of a usual size."""
        found = [real_value(f, x) for f in (self.value, self.slope, self.second)]
        if any(v is None or not abs(v) < LARGE for v in found):
            return None
        value, slope, second = found
        return float(value), float(slope), float(second)  # type: ignore[arg-type]

    def _compare_emitted(self, x: float, row: Sequence[float], exact: Floats) -> None:
        scale = (1 + abs(x)) * sum(map(abs, exact))
        names = ("value", "slope", "second derivative")
        for what, got, wanted in zip(names, row, exact, strict=False):
            if not abs(got - wanted) <= CONDITIONED * scale:
                raise self._inaccurate(f"{what}, as computed in float64,", x, wanted, got)

    def _compare_kept(
        self, dtype: str, rows: Sequence[tuple[float, Sequence[float], Floats]]
    ) -> None:
        """The kept slope loses no more than :data:`KEPT` says, or than the slope from the argument."""
        relative, absolute = KEPT[dtype]
        usual = max((abs(e[1]) for p, _, e in rows if abs(p) <= MODERATE), default=0.0)
        for x, (_, direct, _, kept), (_, wanted, _) in rows:
            allowed = relative * abs(wanted) + absolute * usual + 10 * abs(direct - wanted)
            if not abs(kept - wanted) <= allowed:
                what = f"slope from what the backward pass keeps, as computed in {dtype},"
                raise self._inaccurate(what, x, wanted, kept)

    def _inaccurate(self, what: str, x: float, wanted: float, got: float) -> RegistrationError:
        return self._refusal(
            f"the {what} of the transfer function {self.name!r} is wrong at x = {x:g}\n"
            f"  expected: {wanted:.12g}, with many digits\n"
            f"  computed: {got:.12g}",
            "write it so that no large numbers cancel, or declare the open interval it is meant for: "
            "domain=(low, high); if it has none, please report this",
        )

    def _overflow(self, what: str, dtype: str, point: float, value: Number) -> RegistrationError:
        return self._refusal(
            f"the {what} of the transfer function {self.name!r} is not finite in {dtype} at "
            f"x = {point:g}, where it is {_short(value)}",
            "write it with sigmoid, softplus, tanh, erfc, log1p or expm1, which do not overflow, or "
            "declare the domain it is meant for: domain=(low, high)",
        )

    def _undefined(self, what: str, x: Number) -> RegistrationError:
        low, high = self.domain
        return self._refusal(
            f"{what} {'' if what == 'the function' else f'of {self.name!r} '}"
            f"is not a finite real number at x = {_short(x)}: {self.expression}",
            f"choose another branch there with select, or declare the open interval it is meant for: "
            f"domain=(low, high) instead of ({low:g}, {high:g})",
        )

    def _refusal(self, found: str, instead: str) -> RegistrationError:
        where = f"the transfer function {self.name!r}, declared at {self.declared_at}"
        return RegistrationError(found, where=where, instead=instead)


def _signed(points: list[float] | tuple[float, ...]) -> Iterator[float]:
    yield from dict.fromkeys(itertools.chain(points, (-p for p in points if p)))


def _short(value: Number) -> str:
    return mpmath.nstr(value, 12, strip_zeros=True).removesuffix(".0")
