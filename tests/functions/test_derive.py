"""Derived slopes, stable forms and keep decisions."""

import pytest
import sympy
from sympy import Float, Rational, exp, log, sqrt, tanh

from gncompile.errors import ExpressionError
from gncompile.functions import (
    clamp,
    erfc,
    expm1,
    log1p,
    maximum,
    relu,
    select,
    sigmoid,
    softplus,
)
from gncompile.functions.derive import differentiate, pointwise_rule
from gncompile.functions.stable_forms import stable
from gncompile.functions.transfer import transfer, transfer_names

x, y, c = sympy.symbols("x y c", real=True)
a = sympy.Symbol("output", real=True)
POINTS = [Rational(p, 7) for p in (-40, -3, 2, 23)]

BEYOND = {
    "gate": tanh(x) * sigmoid(y),
    "residual": x + transfer("gelu")(y),
    "fused relu": relu(x + y),
    "quotient": x / (1 + y**2),
    "gaussian": exp(-(x**2) / 2),
    "softsign": x / (1 + sympy.Abs(x)),
    "relu6": clamp(x, 0, 6),
    "selu": Rational(21, 20) * select(x, x, Rational(5, 3) * expm1(x)),
    "mish": x * tanh(softplus(x)),
    "log cosh": log(sympy.cosh(x)),
    "root": sqrt(1 + x**2),
    "squared relu": relu(x) ** 2,
    "scaled tanh": Rational(17159, 10000) * tanh(2 * x / 3) + c,
    "power": (1 + x**2) ** y,
    "arctangent": sympy.atan(x) + sympy.asinh(y),
}
EXPRESSIONS = {name: transfer(name).expression for name in transfer_names()} | BEYOND


def rule_of(value):
    used = value.free_symbols
    return pointwise_rule(value, tuple(s for s in (x, y) if s in used))


def at(expression, point):
    """The value in thirty digits at ``x = point``, ``y = 2/3 - point``, ``c = 1/5``."""
    return expression.subs({x: point, y: Rational(2, 3) - point, c: Rational(1, 5)}).evalf(30)


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize("point", POINTS)
def test_slopes_and_seconds_equal_central_differences(name, point):
    rule, step = rule_of(EXPRESSIONS[name]), Rational(1, 10**10)

    def difference(expression, symbol):
        up, down = expression.subs(symbol, symbol + step), expression.subs(symbol, symbol - step)
        return (at(up, point) - at(down, point)) / (2 * step)

    assert abs(at(rule.value - EXPRESSIONS[name], point)) < 1e-25
    for i, slope in enumerate(rule.slopes):
        expected = difference(EXPRESSIONS[name], rule.arguments[i])
        assert abs(at(slope, point) - expected) < 1e-15 * (1 + abs(expected))
        for j in range(i, len(rule.arguments)):
            expected = difference(slope, rule.arguments[j])
            assert abs(at(rule.seconds[i, j], point) - expected) < 1e-15 * (1 + abs(expected))


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize("point", POINTS)
def test_kept_slopes_equal_slopes(name, point):
    rule = rule_of(EXPRESSIONS[name])
    for slope, kept in zip(rule.slopes, rule.kept_slopes, strict=True):
        got = at(kept.subs(rule.output, at(rule.value, point)), point)
        assert abs(got - at(slope, point)) < 1e-20


KEEPS = {
    "identity": ("nothing", 1),
    "tanh": ("output", 1 - a**2),
    "sigmoid": ("output", a * (1 - a)),
    "relu": ("output", select(a, 1, 0)),
    "leaky_relu": ("output", select(a, 1, Rational(1, 100))),
    "elu": ("output", select(a, 1, 1 + a)),
    "softplus": ("output", -expm1(-a)),
    "sin": ("input", sympy.cos(x)),
    "silu": ("input", sigmoid(x) + x * sigmoid(x) * sigmoid(-x)),
    "gelu": ("input", None),
    "gelu_tanh": ("input", None),
}


def test_every_transfer_function_has_an_expected_decision():
    assert set(transfer_names()) >= set(KEEPS)


@pytest.mark.parametrize("name", KEEPS)
def test_what_the_vocabulary_keeps(name):
    keeps, slope = KEEPS[name]
    rule = transfer(name).rule
    assert rule.keeps == keeps
    assert slope is None or rule.kept_slopes == (slope,)
    assert rule.why


@pytest.mark.parametrize(
    ("value", "keeps", "slopes"),
    [
        (3 * x + y, "nothing", (3, 1)),
        (x * y, "input", (y, x)),
        (relu(x + y), "output", (select(a, 1, 0),) * 2),
        (exp(x), "output", (a,)),
        (sqrt(x), "output", (1 / (2 * a),)),
        (1 / x, "output", (-(a**2),)),
        (exp(-(x**2) / 2), "both", (-a * x,)),
        (3 * tanh(x / 2) + 1, "output", (Rational(3, 2) * (1 - ((a - 1) / 3) ** 2),)),
        (clamp(x, 0, 6), "output", (select(6 - a, select(a, 1, 0), 0),)),
        (maximum(x, x / 5), "output", (select(a, 1, Rational(1, 5)),)),
        (select(x, x, -x / 5), "input", (select(x, 1, -Rational(1, 5)),)),
        (select(x, x, -2), "output", (select(a, 1, 0),)),
        (select(x, x, 2), "input", (select(x, 1, 0),)),
        (select(x, x, expm1(x) + 1), "input", (select(x, 1, exp(x)),)),
        (select(y, x, 2 * x), "input", (select(y, 1, 2), 0)),
        (transfer("hardshrink").expression, "output", (select(2 * sympy.Abs(a) - 1, 1, 0),)),
        (transfer("softshrink").expression, "output", (select(a, 1, select(-a, 1, 0)),)),
        (transfer("logsigmoid").expression, "output", (-expm1(a),)),
        # the output cannot tell the branches apart: 2 is also an x beyond 1, and 3 no function of x
        (select(sympy.Abs(x) - 1, x, 2), "input", (select(sympy.Abs(x) - 1, 1, 0),)),
        (select(x, 3, x), "input", (select(x, 0, 1),)),
    ],
)
def test_what_is_kept(value, keeps, slopes):
    rule = rule_of(value)
    assert rule.keeps == keeps
    for got, expected in zip(rule.kept_slopes, slopes, strict=True):
        assert sympy.expand(got - expected) == 0
    assert set(rule.kept) == set().union(*(s.free_symbols for s in rule.kept_slopes))


def tied(u, v):
    """torch's maximum: equal arguments share the slope."""
    return select(u - v, u, select(v - u, v, (u + v) / 2))


@pytest.mark.parametrize(
    ("u", "v"), [(x, sympy.Integer(0)), (x, y), (3 * x / 10, 1 - y), (x, tanh(x))]
)
def test_a_tie_is_one_of_slopes_only(u, v):
    rule = rule_of(tied(u, v))
    assert rule.value == stable(maximum(u, v))
    assert rule.keeps == "input"
    slope = rule.slopes[0].subs({x: 0, y: 0})
    if u - v == x or u - v == x - y:
        assert slope == Rational(1, 2)


@pytest.mark.parametrize(
    "value",
    [
        relu(x) - Rational(1482, 1000),  # small x are lost beside the shift
        relu(x + 1) / 3 + 2,
        exp(x) + 5,
        300 + tanh(x) / 100,
        tanh(x) + c,
        clamp(x, 0, 6) / 6,  # six sixths may not round to one
        Rational(3, 10) * clamp(x, Rational(-3, 10), Rational(7, 10)),
        select(x, 2 * x + 1, 0),
        select(x - 1, x, x / 2),
        sympy.Integer(10) ** -30 * tanh(x),
    ],
)
def test_the_input_is_kept_where_rounding_takes_the_slope_from_the_output(value):
    assert rule_of(value).keeps == "input"


@pytest.mark.parametrize(
    "value",
    [
        maximum(x, Rational(127, 100)),
        clamp(x, Rational(-3, 10), Rational(7, 10)),
        clamp(x, Rational(-3, 10), Rational(7, 10)) / 4,
        Rational(3, 10) * relu(x),
        select(x - Rational(127, 100), x, Rational(127, 100)),
        sigmoid(x) / 3 - Rational(1, 4),
        -2 * transfer("elu")(x),
    ],
)
def test_the_output_is_kept_where_it_tells_everything(value):
    assert rule_of(value).keeps == "output"


def test_an_output_symbol_never_clashes():
    rule = pointwise_rule(tanh(a), (a,))
    assert rule.output != a
    assert rule.kept_slopes == (1 - rule.output**2,)


def test_piecewise_linear_is_recognised():
    linear = {name for name in transfer_names() if transfer(name).rule.piecewise_linear}
    assert linear & set(KEEPS) == {"identity", "relu", "leaky_relu"}


@pytest.mark.parametrize(
    ("raw", "form"),
    [
        (1 / (1 + exp(-x)), sigmoid(x)),
        (exp(x) / (1 + exp(x)), sigmoid(x)),
        (exp(-x) / (1 + exp(-x)) ** 2, sigmoid(x) * sigmoid(-x)),
        (1 - sigmoid(x), sigmoid(-x)),
        (2 / (1 + exp(-2 * x)) - 1, tanh(x)),
        ((exp(x) - exp(-x)) / (exp(x) + exp(-x)), tanh(x)),
        (log(1 + exp(x)), softplus(x)),
        (log(exp(x) + exp(y)), x + softplus(y - x)),
        (log(1 / (1 + exp(-x))), -softplus(-x)),
        (log(1 + x**2), log1p(x**2)),
        (2 * exp(x) - 2, 2 * expm1(x)),
        (x * (1 + sympy.erf(x)) / 2, x * erfc(-x) / 2),
        (1 + sympy.erf(x), erfc(-x)),
        (sympy.erfc(x), erfc(x)),
        (sympy.Max(x, 0), select(x, x, 0)),
        (sympy.Min(x, 0), select(-x, x, 0)),
        (Float(0.1) * x, x / 10),
        (select(2 * x, x, 0), select(x, x, 0)),
        (select(x, 1, 0) * select(x, y, 3), select(x, y, 0)),
        (log(sympy.cosh(x)), softplus(2 * x) - x - log(2)),
        (3 - 3 * tanh(2 * x) ** 2, 3 * sympy.cosh(2 * x) ** -2),
        (1 - sympy.cosh(x) ** -2, tanh(x) ** 2),
        (sympy.sinh(x) / sympy.cosh(x) ** 3, tanh(x) / sympy.cosh(x) ** 2),
        (1 - 2 * sympy.sin(x) * sympy.cos(x), (sympy.sin(x) - sympy.cos(x)) ** 2),
        (x * sympy.sign(x) / 3, sympy.Abs(x) / 3),
        (1 / (1 + sympy.Abs(x)) - sympy.Abs(x) / (1 + sympy.Abs(x)) ** 2, (1 + sympy.Abs(x)) ** -2),
        (1 / sqrt(1 + x**2) - x**2 / sqrt(1 + x**2) ** 3, sqrt(1 + x**2) ** -3),
        (1 / (1 + x**2) - y / (1 + x**2) ** 2, 1 / (1 + x**2) - y / (1 + x**2) ** 2),
    ],
)
def test_stable_forms(raw, form):
    assert stable(raw) == form
    for point in POINTS:
        assert abs(at(raw - form, point)) < 1e-20


def test_stable_forms_are_fixed_points():
    for value in EXPRESSIONS.values():
        assert stable(stable(value)) == stable(value)


@pytest.mark.parametrize(
    "value",
    [
        sympy.exp(-x) * sympy.prod([i + x**2 for i in range(1, 30)]),
        sympy.prod([sigmoid(i * x) for i in range(1, 60)]),
        sum(sympy.sin(i * x) * y**i for i in range(1, 100)),
    ],
    ids=["sums", "factors", "terms"],
)
def test_large_expressions_are_derived(value):
    rule, step, point = rule_of(value), Rational(1, 10**10), POINTS[2]
    for slope, argument in zip(rule.slopes, rule.arguments, strict=True):
        up, down = value.subs(argument, argument + step), value.subs(argument, argument - step)
        expected = (at(up, point) - at(down, point)) / (2 * step)
        assert abs(at(slope, point) - expected) < 1e-12 * abs(expected)


def test_kinks_have_declared_slopes():
    assert differentiate(sympy.Abs(x), x) == sympy.sign(x)
    assert differentiate(sympy.sign(x) * x, x) == sympy.sign(x)
    assert differentiate(relu(x), x).subs(x, 0) == 0


@pytest.mark.parametrize("value", [sympy.gamma(x), sympy.Heaviside(x), 1 / sympy.Integer(0) + x])
def test_what_has_no_rule_is_refused(value):
    with pytest.raises(ExpressionError, match=r"has no derivative rule[\s\S]*sigmoid"):
        pointwise_rule(value, (x,))
