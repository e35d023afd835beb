"""What a declaration is checked for when it is made, and what its refusal says."""

from __future__ import annotations

import dataclasses
import math

import mpmath
import pytest
import sympy
from sympy import exp, tanh

from gncompile.errors import ExpressionError, RegistrationError
from gncompile.functions import expressions, maximum, number, parsing, relu, select
from gncompile.functions import transfer as registry
from gncompile.functions.derive import pointwise_rule
from gncompile.functions.probe_points import possible_kinks, probe_points
from gncompile.functions.registration_check import TransferCheck
from gncompile.functions.transfer import (
    ARGUMENT,
    define_transfer,
    register_transfer,
    transfer,
)

x = ARGUMENT
EVERYWHERE = (-math.inf, math.inf)


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_DECLARED", dict(registry._DECLARED))
    monkeypatch.setattr(parsing, "FUNCTIONS", dict(parsing.FUNCTIONS))
    monkeypatch.setattr(registry, "FUNCTIONS", parsing.FUNCTIONS)


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_the_vocabulary_passes_its_own_check(name):
    """Left out at import to keep it quick, so made up for here."""
    transfer(name).check()


def checked(expression, **changed):
    """The check of ``expression`` with parts of its rule replaced by wrong ones."""
    rule = dataclasses.replace(pointwise_rule(expression, (x,)), **changed)
    TransferCheck("wrong", expression, x, EVERYWHERE, rule, "here").run()


def test_a_wrong_value_slope_or_kept_slope_is_found():
    right = pointwise_rule(tanh(x), (x,))
    checked(tanh(x))
    with pytest.raises(
        RegistrationError, match="the value, rewritten to be stable, .* wrong at x = "
    ):
        checked(tanh(x), value=tanh(x) + exp(-(x**2)) / 10**9)
    with pytest.raises(RegistrationError, match="the slope of the transfer function 'wrong'"):
        checked(tanh(x), slopes=(1 - tanh(x) ** 3,))
    with pytest.raises(RegistrationError, match="the second derivative"):
        check_wrong_second()
    with pytest.raises(RegistrationError, match="slope from what the backward pass keeps"):
        checked(tanh(x), kept_slopes=(1 - right.output**4,))


def check_wrong_second():
    """A rule whose slope is right but whose second derivative, derived from it, is not."""

    class Wrong(type(pointwise_rule(tanh(x), (x,)))):
        @property
        def seconds(self):
            return {(0, 0): sympy.Integer(1)}

    right = pointwise_rule(tanh(x), (x,))
    fields = {f.name: getattr(right, f.name) for f in dataclasses.fields(right)}
    TransferCheck("wrong", tanh(x), x, EVERYWHERE, Wrong(**fields), "here").run()


def test_a_wrong_order_of_evaluation_is_found(monkeypatch):
    """The formulas are right; what the backends make of them is not."""
    register_transfer("bent", "x*(1 + x**2)**-0.3", override=True)
    monkeypatch.setattr(expressions, "_repeated", lambda base, power: [base] * int(power))
    with pytest.raises(RegistrationError) as caught:
        register_transfer("bent", "x*(1 + x**2)**-0.3", override=True)
    text = str(caught.value)
    assert (
        "the value, as computed in float64, of the transfer function 'bent' is wrong at x = "
        in text
    )
    assert "with many digits\n  computed: " in text


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        (300 + tanh(x) / 100, lambda a: (1 - (100 * (a - 300)) ** 2) / 100),
        (maximum(x, number(0.07)), lambda a: select(100 * a - 7, 1, 0)),
        (relu(x) - number(0.57), lambda a: select(100 * a + 57, 1, 0)),
    ],
    ids=["shift", "maximum", "shifted relu"],
)
def test_a_slope_that_rounding_takes_from_the_output_is_found(expression, kept):
    right = pointwise_rule(expression, (x,))
    checked(expression)
    with pytest.raises(
        RegistrationError, match="from what the backward pass keeps, as computed in"
    ):
        checked(expression, kept_slopes=(kept(right.output),))


def test_a_refusal_gives_the_point_and_both_values():
    with pytest.raises(RegistrationError) as caught:
        checked(x**2, slopes=(3 * x,))
    text = str(caught.value)
    assert "is wrong at x = -997\n  expected: -1994, from the declared expression" in text
    assert "derived:  -2991" in text
    assert "declared at here" in text


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("log(x)", "the function is not a finite real number at x = -997: log(x)"),
        ("1/x", "not a finite real number at x = 0"),
        ("x*log(x)", "not a finite real number"),
        ("sqrt(x**2 + x**4)", "not a finite real number at x = 0"),
        ("sqrt(abs(x))", "the slope of 'bad' is not a finite real number at x = 0"),
        ("sin(exp(x))", "not finite in float32 at x = 100, where it is 0.142198123658"),
        ("exp(x)*exp(-x**2)", "not finite in float32 at x = 100, where it is"),
        (
            "x**3*exp(x)/(exp(x) + 2*exp(-x))",
            "not finite in float32 at x = 100, where it is 1000000",
        ),
    ],
)
def test_what_is_not_finite_is_refused_with_the_point(expression, text):
    with pytest.raises(RegistrationError) as caught:
        register_transfer("bad", expression)
    assert text in str(caught.value)
    assert "domain=(low, high)" in str(caught.value)
    assert "bad" not in registry._DECLARED


def test_a_domain_limits_what_is_asked():
    register_transfer("logarithm", "log(x)", domain=(0, math.inf))
    register_transfer("small", "exp(x)*exp(-x**2)", domain=(-3, 3))
    with pytest.raises(RegistrationError, match="is an empty interval"):
        register_transfer("nowhere", "x", domain=(1, 1))


@pytest.mark.parametrize(
    "expression",
    ["tan(x)", "exp(exp(x))", "2**(2**(2**x))", "sign(x)", "sin(10**18*x)", "x*exp(-x**2)"],
)
def test_growth_and_steepness_are_no_mistakes(expression):
    register_transfer("fine", expression, override=True)
    assert transfer("fine").expression == define_transfer("fine", expression, {}).expression


def test_probe_points_stand_beside_kinks_and_inside_the_domain():
    kinks = possible_kinks(select(x - 2, x, 0) + abs(x**2 - 3), x, EVERYWHERE)
    assert [round(float(k), 9) for k in kinks] == [-1.732050808, 1.732050808, 2.0]
    points = probe_points((-1.0, 5.0), (mpmath.mpf(2),))
    assert all(-1 < p < 5 for p in points)
    assert {round(float(p - 2), 7) for p in points if abs(p - 2) < 1e-5} == {-3e-06, 3e-06}


def test_expressions_out_of_proportion_are_refused_before_they_are_derived():
    for text in (
        "*".join(f"(x + {i})" for i in range(100)),
        "softplus(" * 31 + "x" + ")" * 31,
        "*".join(f"sin(x + {i})" for i in range(60)),
    ):
        with pytest.raises(ExpressionError, match="the derivatives of this expression have up to"):
            register_transfer("huge", text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("9**9**9", "beyond ±64"),
        ("x**9**9", "beyond ±64"),
        ("x.__class__", "attribute access"),
        ("__import__('os')", "'__import__' is unknown"),
        ("(" * 9000, "at most 4000 are allowed"),
        ("x+" * 10**6 + "x", "at most 4000 are allowed"),
        ("tan(exp(exp(x)))", "not a finite real number"),
        ("sin(exp(exp(exp(x))))", "not a finite real number"),
        ("x**x**x**x", "not a finite real number"),
        ("exp(" * 31 + "x" + ")" * 31, "at most 10000 are allowed"),
    ],
    ids=lambda text: text[:20],
)
def test_hostile_texts_are_refused(text, said):
    with pytest.raises((ExpressionError, RegistrationError), match=said):
        register_transfer("hostile", text)
    assert "hostile" not in registry.transfer_names()


@pytest.mark.parametrize(
    "text",
    [
        *("2**(2**(2**(2**x)))", "(((x**2+1)**64+1)**64+1)**64", "cosh(x)**64"),
        *("abs(sin(x))*" * 30 + "x", "+".join(f"sin({i}*x)**{i}" for i in range(1, 20))),
    ],
    ids=lambda text: text[:20],
)
def test_awkward_texts_are_accepted(text):
    register_transfer("awkward", text)
    assert "awkward" in registry.transfer_names()
