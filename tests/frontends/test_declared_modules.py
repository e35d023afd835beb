"""A declared function as a module: the compiler reads back what was declared, whatever evaluates it."""

from __future__ import annotations

import random
import warnings

import mpmath
import pytest
import torch
from torch import nn

import gncompile
from gncompile.frontends import trace
from gncompile.functions.derive import pointwise_rule
from gncompile.functions.expressions import evaluate
from gncompile.functions.precise import precise_function
from gncompile.functions.transfer import (
    ARGUMENT,
    BUILT_IN,
    TransferFunction,
    define_transfer,
)
from gncompile.graph.nodes import Pointwise

POINTS = torch.linspace(-3.1, 2.9, 13, dtype=torch.float64)[:, None]
TEXTS = (
    *(
        "x/sqrt(1 + x**2)",
        "sqrt(x**2 + 0.01)",
        "(1 + x**2)**(-1.5)",
        "1/(1 + x**2)",
        "x**2/(1 + x**2)",
    ),
    *(
        "softplus(x)**2",
        "softplus(softplus(x) - 1)",
        "exp(-x**2)*x",
        "max(x, min(1, x/3))",
        "2 + 0*x",
    ),
)
PARTS = (
    *("{0}*tanh({1})", "{0} + sin({1})/3", "softplus({0}) - {1}/2", "{0}/sqrt(1 + ({1})**2)"),
    *("select({0} - 0.3, {0}, {1}/4)", "sigmoid({0})*{1}", "max({0}, {1} - 1)"),
    "clamp({0}, -1, 2) + {1}",
)


def written(generator: random.Random, depth: int) -> str:
    if depth == 0:
        return generator.choice(("x", "x", "0.7*x", "(x - 1)", "1.3"))
    parts = (written(generator, depth - 1) for _ in range(2))
    return generator.choice(PARTS).format(*(f"({part})" for part in parts))


def read_back(function: TransferFunction) -> None:
    """Its module, traced, has the values and slopes of the declaration, by mpmath on what was declared."""
    module = function.module().double()
    traced = trace(module, POINTS)
    nodes = [node for node in traced.graph if isinstance(node.op, Pointwise)]
    if not nodes:
        assert function.expression == ARGUMENT
        return
    (node,) = nodes
    assert isinstance(node.op, Pointwise)
    (symbol,) = node.op.arguments
    assert node.op.expression.xreplace({symbol: ARGUMENT}) == function.expression
    rule = pointwise_rule(node.op.expression, node.op.arguments)
    values = evaluate(rule.value, {symbol: POINTS}).expand_as(POINTS).flatten().tolist()
    slopes = evaluate(rule.slopes[0], {symbol: POINTS}).expand_as(POINTS).flatten().tolist()
    exact = precise_function(function.expression, (ARGUMENT,))
    torch.testing.assert_close(module(POINTS).flatten().tolist(), values, rtol=1e-12, atol=1e-15)
    with mpmath.workdps(40):
        for x, value, slope in zip(POINTS.flatten().tolist(), values, slopes, strict=True):
            assert value == pytest.approx(float(exact(mpmath.mpf(x))), rel=1e-12, abs=1e-15)
            around = [exact(mpmath.mpf(x) + s * mpmath.mpf(10) ** -15) for s in (-1, 1)]
            wanted = float((around[1] - around[0]) / (2 * mpmath.mpf(10) ** -15))
            assert slope == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_vocabulary(name: str) -> None:
    read_back(BUILT_IN[name])


@pytest.mark.parametrize("text", TEXTS)
def test_forms_that_an_evaluator_writes_otherwise(text: str) -> None:
    read_back(define_transfer("written", text, {}))


def test_random_expressions() -> None:
    generator = random.Random(0)
    for _ in range(30):
        read_back(define_transfer("written", written(generator, 2), {}))


def test_a_registered_root_trains_by_name() -> None:
    isru = gncompile.register_transfer("isru_of_a_test", "x/sqrt(1 + x**2)", override=True)
    model = nn.Sequential(nn.Linear(3, 4), isru.module(), nn.Linear(4, 1)).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8, 1).double()
    (wanted,) = torch.autograd.grad(nn.functional.mse_loss(model(x), y), model[0].weight)
    found = gncompile.compile(model, nn.MSELoss(), x).gradients(x, y)["0.weight"]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


class Distance(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.hypot(x, 2 - x)


def test_hypot_itself() -> None:
    model = nn.Sequential(nn.Linear(1, 3), Distance(), nn.Linear(3, 1)).double()
    y = torch.sin(POINTS)
    (wanted,) = torch.autograd.grad(nn.functional.mse_loss(model(POINTS), y), model[0].weight)
    found = gncompile.compile(model, nn.MSELoss(), POINTS).gradients(POINTS, y)["0.weight"]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("select(x, x + 1, x)", "jumps by 1 at x = 0$"),
        ("select(x - 0.5, 3 - x, x)", "jumps by 2 at x = 0.5$"),
        ("sign(x)", "jumps by 2 at x = 0 and has the slope zero wherever it is defined"),
        ("select(x, 1, 0)", "jumps by 1 at x = 0 and has the slope zero"),
        ("2 + 0*x", "has the slope zero wherever it is defined"),
    ],
)
def test_what_slopes_cannot_see_is_warned_of(text: str, found: str) -> None:
    with pytest.warns(gncompile.errors.DeclarationWarning, match=found.replace("$", "\n")):
        gncompile.register_transfer("seen_by_no_slope", text, override=True)


@pytest.mark.parametrize("text", ["abs(x)", "max(x, 0)", "select(x, x**2, -x)", "clamp(x, 0, 1)"])
def test_kinks_are_no_jumps(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gncompile.register_transfer("seen_by_no_slope", text, override=True)
