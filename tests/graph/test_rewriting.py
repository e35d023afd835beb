"""Every rewriting of an expression, proved on random points with 50 digits: rules, products, slopes kept."""

from __future__ import annotations

import random
from collections.abc import Callable

import mpmath
import pytest
import sympy
import torch
from sympy import Abs, Expr, cos, cosh, erf, exp, log, sin, sinh, tanh

from gncompile.errors import ExpressionError
from gncompile.functions import (
    erfc,
    expm1,
    log1p,
    number,
    select,
    sigmoid,
    softplus,
)
from gncompile.functions.derive import pointwise_rule
from gncompile.functions.precise import precise_function, real_value
from gncompile.functions.stable_forms import RULES, stable
from gncompile.verification.accuracy import BACKENDS

x, y = sympy.symbols("x y", real=True)
DIGITS = 50
POINTS = (0.0, 1e-30, -1e-30, 0.5, -0.5, 1.0, -1.0, 1e3, -1e3, 1e30, -1e30)
DRAWN, APPLIED = 80, 20
"""Expressions drawn for each rule, and how many of them it must apply to."""


class Draw:
    """Random numbers and expressions of one seed."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def number(self) -> Expr:
        """A decimal, a fraction, an integer or a root; not zero."""
        return self.random.choice(
            [
                number(self.random.choice([-1.27, -0.3, 0.7, 1.87, 0.001])),
                sympy.Rational(self.random.randint(1, 9), self.random.randint(2, 7)),
                sympy.Integer(self.random.choice([-3, -2, -1, 1, 2, 5])),
                sympy.sqrt(self.random.choice([2, 3])),
            ]
        )

    def positive(self) -> Expr:
        return abs(self.number())

    def whole(self, most: int = 4) -> int:
        return self.random.randint(1, most)

    def argument(self) -> Expr:
        """What a function is applied to: of x, y or both."""
        a, b = self.number(), self.number()
        return self.random.choice(
            [x, y, a * x, a * x + b, x * y + a, x**2 - b, sin(x) + a, Abs(x) - b, a * x + b * y]
        )

    def rest(self) -> Expr:
        """Another factor or term."""
        u = self.argument()
        return self.random.choice([u, tanh(u), u**2, sin(u), self.number(), exp(-(u**2))])


def either(d: Draw, *made: Expr) -> Expr:
    return d.random.choice(made)


CASES: dict[str, Callable[[Draw], Expr]] = {
    "exact_numbers": lambda d: sympy.Float(d.random.choice([0.1, -1.27, 1e-30, 3.0, 2.5e7])),
    "extremes": lambda d: either(d, sympy.Max, sympy.Min)(d.argument(), d.number(), d.rest()),
    "complement": lambda d: sympy.erfc(d.argument()),
    "condition_scale": lambda d: select(
        d.positive() * either(d, d.argument(), x * y, sin(x), 4 * x - 6), d.rest(), d.rest()
    ),
    "settled_branches": lambda d: (
        lambda c, t: select(
            c,
            d.rest() + t(select(either(d, c, -c), d.rest(), d.number())),
            either(d, t, sympy.Abs)(select(c, d.rest(), y * select(x - y, select(c, 2, x), 3))),
        )
    )(d.argument(), either(d, lambda u: u, lambda u: d.number() * u, tanh)),
    "merged_branches": lambda d: (lambda c: d.number() * select(c, d.rest(), 2) * select(c, 3, y))(
        d.argument()
    ),
    "logistic_quotient": lambda d: (1 + exp(d.argument())) ** -d.positive(),
    "logistic_product": lambda d: (
        lambda u, k: d.number() * exp(-d.whole(k) * u) * sigmoid(u) ** k
    )(d.argument(), d.whole()),
    "hyperbolic_quotient": lambda d: (
        lambda u: d.number() * sinh(u) ** d.whole(2) * cosh(u) ** -d.positive()
    )(d.argument()),
    "hyperbolic_square": lambda d: (
        lambda u, c: either(d, c - c * tanh(u) ** 2, c - c / cosh(u) ** 2) + d.whole() * x
    )(d.argument(), d.number()),
    "squared_sum": lambda d: (
        lambda u, c: c + either(d, -2, 2) * c * sin(u) * cos(u) + either(d, 0, y)
    )(d.argument(), d.positive()),
    "magnitude": lambda d: (lambda u: d.number() * u * sympy.sign(u) * either(d, 1, y))(
        either(d, x, y, sin(x), x + d.number())
    ),
    "common_denominator": lambda d: (
        lambda u, c, k: c / u**k - c * (u - 1) / u ** (k + 1)
    )(
        either(d, 1 + Abs(x), 1 + x**2, 1 + x * y), d.number(),
        either(d, 1, 2, sympy.Rational(1, 2), number(0.3)),
    ),
    "logarithms": lambda d: either(
        d,
        log(exp(d.argument()) + exp(d.argument())),
        log(1 + d.argument()),
        log(d.positive() * cosh(d.argument())),
        log(sigmoid(d.argument())),
        log1p(exp(d.argument())),
    ),
    "cancelling_sums": lambda d: (
        lambda u, c: c * either(d, exp(u) - 1, sigmoid(u) - 1, 2 * sigmoid(u) - 1, tanh(u) + 1,
                                tanh(u) - 1, erf(u) + 1, erf(u) - 1, erfc(u) - 1, erfc(u) - 2,
                                expm1(u) + 1)
    )(d.argument(), d.number()),
    "paired_exponentials": lambda d: (
        lambda u, c: sympy.expand(c * (exp(u) + either(d, 1, -1) * exp(-u))) + either(d, 0, y)
    )(d.argument(), d.number()),
    "vanishing_times_polynomial": lambda d: exp(-(d.argument() ** 2))
    * (d.number() + d.argument() ** d.whole(2)) ** d.whole(2)
    * (1 + x**2),
}  # fmt: skip
"""Expressions to which each rule is meant to apply."""


def differ(before: Expr, after: Expr, points: list[tuple[float, float]]) -> list[object]:
    """Points where ``before`` is a number and ``after`` not the same, with both."""
    compared, found = 0, []
    # a float stands for the decimal that is written the same
    digits = mpmath.mpf(10) ** -(16 if before.has(sympy.Float) else DIGITS - 15)
    with mpmath.workdps(DIGITS):
        functions = [precise_function(e, (x, y)) for e in (before, after)]
        for point in points:
            wanted, got = (real_value(f, *point) for f in functions)
            if wanted is None or not mpmath.isfinite(wanted) or abs(wanted) > 1e300:
                continue
            compared += 1
            # what cancels before the rewriting: mpmath's own digits are lost, not the rule's
            size = 1 + abs(wanted) + max(abs(p) for p in point) ** 2
            if got is None or not abs(got - wanted) <= digits * size:
                found.append((before, after, point, wanted, got))
    assert compared, f"{before} is real at none of the points"
    return found


def test_every_rule_has_a_case() -> None:
    assert list(CASES) == [rule.__name__ for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_changes_no_value(rule: Callable[[Expr], Expr | None]) -> None:
    d = Draw(rule.__name__)
    applied = 0
    for _ in range(DRAWN):
        try:
            before = sympy.sympify(CASES[rule.__name__](d))
            after = rule(before)
        except ExpressionError:
            continue
        if after is None or after == before:
            continue
        applied += 1
        drawn = [(d.random.gauss(0, 3), d.random.gauss(0, 3)) for _ in range(4)]
        fixed = [(p, q) for p in POINTS for q in (0.0, -0.7, 1e3)]
        assert not differ(before, after, [*drawn, *d.random.sample(fixed, 8)])
        assert not differ(before, stable(before), drawn)
    assert applied >= APPLIED


# What emission rewrites -----------------------------------------------------------------------------------


def power(d: Draw) -> Expr:
    """Exponents of every kind."""
    return either(
        d, *map(sympy.Integer, (-3, -2, -1, 1, 2, 3)),
        *(sympy.Rational(p, 2) for p in (-3, -1, 1, 3)),
        *(number(v) for v in (-1.27, -0.3, 0.3, 0.75, 1.6)), sympy.Rational(-1, 3), -sympy.sqrt(2),
    )  # fmt: skip


def factor(d: Draw) -> Expr:
    """A factor as :class:`~gncompile.functions.expressions.Product` meets them."""
    squares = either(
        d, d.positive() + d.positive() * x**2, x**2 + y**2, 1 + x**4, d.positive() + x**2 * y**2,
        sympy.Rational(1, 2) + tanh(x) ** 2,
    )  # fmt: skip
    return either(
        d, squares ** power(d), squares ** power(d), cosh(x) ** power(d), (1 + Abs(x)) ** power(d),
        x ** d.whole(3), exp(-(x**2)), exp(y), tanh(x), (2 + sin(x)) ** power(d), Abs(y), d.number(),
        select(x - d.number(), d.rest(), d.number()),
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(4))
def test_products_are_computed_as_they_are_meant(backend: str, seed: int) -> None:
    d = Draw(f"product {seed}")
    rooted = 0
    for _ in range(40):
        e = sympy.Mul(*(factor(d) for _ in range(d.whole(4))))
        e = e + d.rest() if d.random.random() < 0.3 else e
        rooted += any(p.base.is_Add and not (2 * p.exp).is_Integer for p in e.atoms(sympy.Pow))
        check_emitted(e, backend, d)
    assert rooted > 5


def check_emitted(e: Expr, backend: str, d: Draw, sizes: tuple[float, ...] = (0.3, 3.0)) -> None:
    """Float64 against 50 digits, where the value is well conditioned."""
    points = [tuple(d.random.gauss(0, s) for _ in "xy") for s in sizes for _ in range(6)]
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True)]
    found = BACKENDS[backend](e, dict(zip((x, y), columns, strict=True))).tolist()
    with mpmath.workdps(DIGITS):
        function = precise_function(e, (x, y))
        for point, got in zip(points, found, strict=True):
            wanted = real_value(function, *point)
            if wanted is None or not abs(wanted) < 1e100:
                continue
            beside = [real_value(function, *(p * (1 + s * 1e-9) for p in point)) for s in (1, -1)]
            spread = max((abs(b - wanted) for b in beside if b is not None), default=0)
            terms = sum(abs(t) for t in map(float, _terms(e, point)))
            allowed = 1e-11 * (abs(wanted) + terms) + 1e-3 * spread
            assert abs(got - wanted) <= allowed, (e, point, got, mpmath.nstr(wanted, 17))


def _terms(e: Expr, point: tuple[float, ...]) -> list[object]:
    """The values of the terms of a sum: their rounding errors do not cancel where they do."""
    values = [real_value(precise_function(t, (x, y)), *point) for t in sympy.Add.make_args(e)]
    return [v for v in values if v is not None and mpmath.isfinite(v)]


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        (select(x, number(0.001), 300), (300, 300, 0.001)),
        (select(x, number(0.001), -300), (-300, -300, 0.001)),
        (select(x, number(0.001), 300 * exp(x)), (300 * torch.e**-1, 300, 0.001)),
        (select(x, 1000 * cos(x), number(-0.002)), (-0.002, -0.002, 1000 * 0.5403023058681398)),
        (select(x, sin(x + sympy.pi), 1 - cos(x)), (0.4596976941318602, 0, -0.8414709848078965)),
        (select(x - number(0.7), 1, 0), (0, 0, 1)),
    ],
)
def test_a_jump_costs_no_digits(expression: Expr, wanted: tuple[float, ...]) -> None:
    """Relative to the branch that is taken, whatever the size of the other."""
    for dtype in (torch.float32, torch.float64):
        at = torch.tensor([-1.0, 0.0, 1.0], dtype=dtype)
        for run in BACKENDS.values():
            found = run(expression, {x: at})
            right = torch.tensor(wanted, dtype=torch.float64).to(dtype)
            torch.testing.assert_close(found, right, rtol=4e-7, atol=1e-30)


@pytest.mark.parametrize("exponent", [number(v) for v in (-0.3, 0.3, 0.75, 1.6, -1.27)])
@pytest.mark.parametrize("other", [sympy.Integer(1), x, x**3])
def test_fractional_powers_do_not_overflow_before_their_value(exponent: Expr, other: Expr) -> None:
    e = other * (1 + x**2) ** exponent
    at = torch.tensor([1e-30, 0.5, 1e15, 1e22, 3e30])
    wanted = torch.tensor([float(e.subs(x, sympy.Float(v, 30)).evalf(30)) for v in at.tolist()])
    for run in BACKENDS.values():
        found = run(e, {x: at})
        usable = wanted.isfinite() & (at**3).isfinite() | (other == 1) & wanted.isfinite()
        torch.testing.assert_close(found[usable], wanted[usable], rtol=2e-5, atol=1e-37)


# Random expressions ---------------------------------------------------------------------------------------


def grown(d: Draw, depth: int) -> Expr:
    """A random expression of all primitives."""
    if depth == 0:
        return either(d, x, y, x, d.number())
    u, v = grown(d, depth - 1), grown(d, d.random.randint(0, depth - 1))
    f = either(d, tanh, sigmoid, softplus, sin, cos, erf, erfc, sympy.atan, sympy.asinh, Abs)
    return either(
        d, u + v, u * v, u - d.number() * v, f(u), f(d.number() * u + d.number()),
        u / (d.positive() + v**2), (d.positive() + u**2) ** power(d), exp(-(u**2)), log1p(u**2),
        select(u - d.number(), v, d.number()), select(u, u, v), expm1(sin(u)), u * sympy.sign(v),
        sinh(tanh(u)), cosh(sin(v)) ** power(d), u ** d.whole(3),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_random_expressions_and_their_slopes(seed: int) -> None:
    d = Draw(f"grown {seed}")
    for _ in range(12):
        e = grown(d, 3)
        if not e.free_symbols or e.has(sympy.zoo, sympy.nan):
            continue
        arguments = tuple(s for s in (x, y) if s in e.free_symbols)
        rule = pointwise_rule(e, arguments)
        points = [(d.random.gauss(0, 1.5), d.random.gauss(0, 1.5)) for _ in range(6)]
        assert not differ(e, rule.value, points)
        with mpmath.workdps(DIGITS):
            value = precise_function(e, (x, y))
            for argument, slope, kept in zip(arguments, rule.slopes, rule.kept_slopes, strict=True):
                steps = [mpmath.mpf(10) ** -18 * (s is argument) for s in (x, y)]
                exact = precise_function(slope, (x, y))
                from_kept = precise_function(kept, (x, y, rule.output))
                for point in points:
                    here, up, down = (
                        real_value(value, *(p + s * h for p, h in zip(point, steps, strict=True)))
                        for s in (0, 1, -1)
                    )
                    if None in (here, up, down) or abs(here) > 1e30:
                        continue
                    wanted = (up - down) / mpmath.mpf(2e-18)
                    size = mpmath.mpf(10) ** -12 * (1 + abs(wanted))
                    assert abs(real_value(exact, *point) - wanted) <= size, (e, point)
                    assert abs(real_value(from_kept, *point, here) - wanted) <= size, (e, point)
        for backend in BACKENDS:
            check_emitted(rule.value, backend, d, sizes=(1.0,))


def test_the_check_sees_a_wrong_power(monkeypatch: pytest.MonkeyPatch, underived: object) -> None:
    """Powers rounded to half numbers, as they once were."""
    monkeypatch.setattr("gncompile.functions.lowering.power_of_root", lambda base, exponent: None)
    monkeypatch.setattr(
        "gncompile.functions.expressions._repeated", lambda base, power: [base] * int(power)
    )
    with pytest.raises(AssertionError):
        test_products_are_computed_as_they_are_meant("torch", 0)
