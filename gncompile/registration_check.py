"""Is what was derived from a declaration true of it? Checked when it is declared, by evaluation.

The declared expression is evaluated with 100 digits and differentiated by central differences, which share
nothing with :mod:`gncompile.derive`: with a step of 1e-20 the slope is good to 1e-40 and the second
derivative to 1e-39, relative to the function's higher derivatives.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import mpmath
import sympy
from sympy import Expr, Symbol

from .derive import PointwiseRule
from .errors import RegistrationError, message
from .precise import Function, Number, precise_function, real_value
from .probe_points import KINK_OFFSET, Domain, possible_kinks, probe_points

DIGITS = 100
STEP = 1e-20
RELATIVE, ABSOLUTE = 1e-15, 1e-30
"""Far above the errors of the differences, far below any wrong rule."""

LARGE = 1e30
"""Where the mathematics exceeds this, float32 need not be finite."""
FLOAT32_POINTS = (0.0, 1e-3, 1.0, 10.0, 30.0, 100.0)
FLOAT64_POINTS = (1000.0,)


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

        from .emit.expressions import evaluate

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
        return RegistrationError(message(found, where=where, instead=instead))


def _signed(points: list[float] | tuple[float, ...]) -> Iterator[float]:
    yield from dict.fromkeys(itertools.chain(points, (-p for p in points if p)))


def _short(value: Number) -> str:
    return mpmath.nstr(value, 12, strip_zeros=True).removesuffix(".0")
