"""The primitives: each declared derivative against its definition, in high precision."""

import mpmath
import pytest
import sympy
from sympy import Rational, Symbol

from gncompile.functions import (
    PRIMITIVES,
    clamp,
    erfc,
    expm1,
    log1p,
    maximum,
    minimum,
    number,
    relu,
    select,
    sigmoid,
    softplus,
)

x, y = sympy.symbols("x y", real=True)
OURS = [sigmoid, softplus, log1p, expm1, erfc]
POINTS = [Rational(p) for p in ("-0.9", "-1/1000", "1/7", "3", "12")]


@pytest.mark.parametrize("function", OURS)
def test_declared_derivative_is_that_of_the_definition(function):
    value = function(x)
    exact = sympy.simplify((value.diff(x) - value.definition().diff(x)).replace(*_to_definition()))
    assert exact == 0


def _to_definition():
    return lambda e: isinstance(e, tuple(OURS)), lambda e: e.definition()


@pytest.mark.parametrize("function", OURS)
@pytest.mark.parametrize("point", POINTS)
def test_value_and_derivative_in_forty_digits(function, point):
    mpmath.mp.dps = 60
    value = function(x).subs(x, point).evalf(40)
    definition = function(x).definition().subs(x, point).evalf(40)
    assert abs(value - definition) <= abs(definition) * Rational(1, 10**38)
    step = Rational(1, 10**12)
    f = function(x).definition()
    difference = (f.subs(x, point + step) - f.subs(x, point - step)).evalf(40) / (2 * step)
    assert abs(function(x).diff(x).subs(x, point).evalf(40) / difference - 1) < 1e-20


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (sigmoid(sympy.Float(-200)), mpmath.mpf("1.3838965267367375e-87")),
        (softplus(sympy.Float(-200)), mpmath.mpf("1.3838965267367375e-87")),
        (erfc(sympy.Float(10)), mpmath.mpf("2.0884875837625448e-45")),
        (expm1(sympy.Float(1e-20)), mpmath.mpf("1e-20")),
        (log1p(sympy.Float(1e-20)), mpmath.mpf("1e-20")),
    ],
)
def test_tails_keep_their_digits(value, expected):
    assert float(value) == pytest.approx(float(expected), rel=1e-14)


def test_our_erfc_does_not_reflect():
    assert erfc(-x).args == (-x,)


def test_select_takes_its_branch():
    assert select(sympy.Integer(1), x, y) == x
    assert select(sympy.Integer(0), x, y) == y
    assert select(sympy.Integer(-2), x, y) == y
    assert select(x, y, y) == y
    assert select(x, x**2, -x).subs(x, -3) == 3


def test_select_differentiates_branchwise():
    assert select(x, x**2, y).diff(x) == select(x, 2 * x, 0)
    assert select(x, x * y, y).diff(y) == select(x, x, 1)
    assert select(x, y, y + 1).diff(y) == 1


@pytest.mark.parametrize("point", [-3, -1, 0, 1, 3])
def test_shorthands(point):
    at = {x: sympy.Integer(point), y: sympy.Integer(1)}
    assert relu(x).subs(at) == max(point, 0)
    assert maximum(x, y).subs(at) == max(point, 1)
    assert minimum(x, y).subs(at) == min(point, 1)
    assert clamp(x, -2, 2).subs(at) == min(max(point, -2), 2)


def test_numbers_are_the_decimals_they_show():
    assert number(0.1) == Rational(1, 10)
    assert number(1e-5) == Rational(1, 100000)
    assert number("0.044715") == Rational(8943, 200000)
    assert float(number(0.7978845608028654)) == 0.7978845608028654


def test_every_primitive_of_one_argument_is_real():
    u = Symbol("u", real=True)
    for name, function in PRIMITIVES.items():
        if name not in ("select", "logsumexp", "log", "log1p", "tan"):
            assert function(u).is_real, name
