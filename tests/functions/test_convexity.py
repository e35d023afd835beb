"""Losses as textbooks write them: convex ones are taken, others refused, and what is derived is true."""

from __future__ import annotations

import itertools
import math
from functools import cache

import mpmath
import pytest
import sympy
import torch

from gncompile.errors import LossError
from gncompile.functions.convexity import convexity
from gncompile.functions.expressions import evaluate
from gncompile.functions.parsing import parse_expression
from gncompile.functions.precise import Function, precise_function
from gncompile.losses import OUTPUT, TARGET, SeparableLoss, define_loss
from gncompile.losses import vocabulary as losses
from gncompile.losses.coupled_loss import CoupledLoss

POSITIVE = (0.0, math.inf)
LSE3 = "log(exp(z1) + exp(z2) + exp(z3))"

CONVEX: dict[str, tuple[str, tuple[float, float]]] = {
    "bernoulli": ("-y*log(sigmoid(z)) - (1-y)*log(1-sigmoid(z))", (-math.inf, math.inf)),
    "bernoulli by exponentials": (
        "-y*log(1/(1+exp(-z))) - (1-y)*log(1 - 1/(1+exp(-z)))",
        (-math.inf, math.inf),
    ),
    "bernoulli by tanh": ("-y*log((1+tanh(z/2))/2) - (1-y)*log((1-tanh(z/2))/2)", (0, 1)),
    "logistic": ("log(1 + exp(-y*z))", (-1, 1)),
    "logistic of sigmoid": ("-log(sigmoid(y*z))", (-1, 1)),
    "log cosh": ("log(cosh(z - y))", (-math.inf, math.inf)),
    "log cosh by exponentials": ("log((exp(z-y) + exp(y-z))/2)", (-math.inf, math.inf)),
    "smooth pinball": ("0.3*(y - z) + 0.1*softplus((z - y)/0.1)", (-math.inf, math.inf)),
    "exponential": ("exp(-y*z)", (-1, 1)),
    "poisson": ("exp(z) - y*log(exp(z))", (-math.inf, math.inf)),
    "gamma": ("y*exp(-z) + z", POSITIVE),
    "weibull": ("exp(2*(log(1+y) - z)) + 2*z", POSITIVE),
    "negative binomial": ("(y + 2.5)*log(2.5 + exp(z)) - y*z", POSITIVE),
    "huber": ("select(abs(z-y) < 1.5, (z-y)**2/2, 1.5*(abs(z-y) - 0.75))", (-math.inf, math.inf)),
    "squared hinge": ("maximum(1 - y*z, 0)**2", (-1, 1)),
    "gaussian": ("-log(exp(-(z-y)**2/(2*0.49))/sqrt(2*pi*0.49))", (-math.inf, math.inf)),
    "quartic": ("(z - y)**4", (-math.inf, math.inf)),
    "pseudo huber": ("sqrt(1 + (z - y)**2) - 1", (-math.inf, math.inf)),
    "softmax of two": (
        "-y1*log(exp(z1)/(exp(z1)+exp(z2))) - y2*log(exp(z2)/(exp(z1)+exp(z2)))",
        (0, 1),
    ),
    "softmax of three": (f"(y1+y2+y3)*{LSE3} - y1*z1 - y2*z2 - y3*z3", (0, 1)),
    "softmax of three by quotients": (
        "".join(f"-y{i}*log(exp(z{i})/(exp(z1)+exp(z2)+exp(z3)))" for i in (1, 2, 3)),
        (0, 1),
    ),
    "log sum exp of five": (
        "log(exp(z1)+exp(z2)+exp(z3)+exp(z4)+exp(z5)) - y1*z1 + (z2-y2)**2/9",
        (-3, 3),
    ),
}

NOT_CONVEX = (
    "-y*(1-sigmoid(z))**2*log(sigmoid(z)) - (1-y)*sigmoid(z)**2*log(1-sigmoid(z))",  # focal
    "log(1 + (z - y)**2)",  # Cauchy
    "(z - y)**2/(1 + (z - y)**2)",  # Geman and McClure
    "1 - exp(-(z - y)**2)",  # Welsch
    "(sigmoid(z) - y)**2",  # Brier
    "log(1 + exp((z - y)**2)) - 0.9*(z - y)**2",
    "(log(1 + exp(z)) - y)**2",
    "z + y*exp(-z)",  # gamma, for negative targets
    "(z - y)**2/2 + 1.000001*cos(z - 1.3)",  # only between the points of any usual grid
    "z**2 - exp(z - 100)",  # only far out
    "(z - y)**2 - 1e-9*abs(z - y)",
    "10**15*(y*softplus(-z) + (1-y)*softplus(z) + y*z - softplus(z)) - 1e-6*z**2",
    "(z1 - y1)**2 + (z2 - y2)**2 + 2.1*z1*z2",
    f"{LSE3} - 0.3*z1**2",
    "log(1 + (z1 - y1)**2 + (z2 - y2)**2)",
    "(z1*z2 - y1)**2",
)


@pytest.mark.parametrize("name", CONVEX)
def test_textbook_forms_are_taken(name: str) -> None:
    text, targets = CONVEX[name]
    loss = define_loss("textbook", text, targets=targets)
    assert loss.convexity.verdict in ("convex", "unproved")
    symbols = (*loss.z, *loss.y) if isinstance(loss, CoupledLoss) else (OUTPUT, TARGET)
    # What the user wrote, untouched by any rule, in 60 digits.
    written = parse_expression(text, {**losses._SYMBOLS})
    function = precise_function(written, symbols)
    derived = (
        {(0,): loss.slope, (0, 0): loss.curvature}
        if isinstance(loss, SeparableLoss)
        else {(0,): loss.gradient[0], (0, 0): loss.entry(0, 0), (0, 1): loss.entry(0, 1)}
    )
    low, high = max(targets[0], -3.0), min(targets[1], 3.0)
    points = [
        [*(z * (1 - 0.35 * i) for i in range(len(symbols) - count)), *[y] * count]
        for z, y in itertools.product((-31.0, 0.11, 29.0), (low, 0.25, high))
        for count in [1 if isinstance(loss, SeparableLoss) else loss.targets_count]
    ]
    values = dict(zip(symbols, torch.tensor(points, dtype=torch.float64).T, strict=True))
    for places, formula in {(): _value(loss), **derived}.items():
        got = evaluate(formula, values).expand(len(points)).tolist()
        for point, found in zip(points, got, strict=True):
            wanted = _difference(function, point, places)
            # Relative to the terms of the derived formula: a slope like 1 - y may cancel at a root.
            size = sum(abs(term(*map(mpmath.mpf, point))) for term in _terms(formula, symbols))
            # The differences are good to a step of 1e-45, the derived formula to its terms' roundings.
            assert abs(wanted - found) <= 1e-13 * size + 1e-40, (places, point, wanted, found)


def _value(loss: SeparableLoss | CoupledLoss) -> sympy.Expr:
    return loss.expression if isinstance(loss, SeparableLoss) else loss.value


def _difference(function: Function, point: list[float], places: tuple[int, ...]) -> mpmath.mpf:
    with mpmath.workdps(90):
        orders = tuple(places.count(i) for i in range(len(point)))
        at = tuple(map(mpmath.mpf, point))
        return mpmath.diff(function, at, orders) if places else function(*at)


@cache
def _terms(formula: sympy.Expr, symbols: tuple[sympy.Symbol, ...]) -> list[Function]:
    return [precise_function(term, symbols) for term in sympy.Add.make_args(sympy.expand(formula))]


@pytest.mark.parametrize("text", NOT_CONVEX)
def test_what_is_not_convex_is_refused(text: str) -> None:
    with pytest.raises(LossError, match="is not convex"):
        define_loss("bent", text)


def test_rounding_is_no_counterexample() -> None:
    """``e''`` as derived from the unsimplified form cancels to -1.6e-11 in 30 digits at z = 50."""
    written = parse_expression(CONVEX["bernoulli"][0], {"z": OUTPUT, "y": TARGET})
    slope = sympy.diff(written, OUTPUT)
    found = convexity(written, OUTPUT, TARGET, slope, sympy.diff(slope, OUTPUT))
    assert found.verdict == "unproved"
    assert found.witness is None


def test_curvature_hidden_by_large_terms_is_found() -> None:
    """Terms of 10¹⁵ that cancel leave ``-z²/10⁶``: any tolerance relative to them would let it pass."""
    large = 10**15 * (sympy.exp(OUTPUT) * sympy.exp(-OUTPUT + TARGET) - sympy.exp(TARGET))
    expression = large - OUTPUT**2 / 10**6
    slope = sympy.diff(expression, OUTPUT)
    found = convexity(expression, OUTPUT, TARGET, slope, sympy.diff(slope, OUTPUT))
    assert found.verdict == "not convex"
