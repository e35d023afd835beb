"""The registry of transfer functions; its vocabulary is compared with torch in test_vocabulary."""

import pytest
import sympy
import torch
from torch.nn import functional

from gncompile.errors import ExpressionError, RegistrationError
from gncompile.functions import parsing, select, softplus
from gncompile.functions import transfer as registry
from gncompile.functions.expressions import evaluate
from gncompile.functions.transfer import (
    ARGUMENT,
    register_transfer,
    transfer,
    transfer_names,
)

x = ARGUMENT


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_DECLARED", dict(registry._DECLARED))
    before = dict(parsing.FUNCTIONS)
    yield
    parsing.FUNCTIONS.clear()
    parsing.FUNCTIONS.update(before)


def agree_with_torch(function, reference):
    """Value and slope in float64, the kink at zero included."""
    h = torch.cat([torch.linspace(-8, 8, 161, dtype=torch.float64), torch.zeros(1).double()])
    h.requires_grad_()
    expected = reference(h)
    (slope,) = torch.autograd.grad(expected.sum(), h)
    at = {x: h.detach()}
    torch.testing.assert_close(
        evaluate(function.rule.value, at), expected.detach(), rtol=1e-13, atol=1e-15
    )
    got = evaluate(function.rule.slopes[0], at).expand_as(slope)
    torch.testing.assert_close(got, slope, rtol=1e-12, atol=1e-14)


def test_names_are_sorted():
    assert transfer_names() == sorted(transfer_names())


def test_a_declaration_is_enough(clean_registry):
    mish = register_transfer("my_mish", "x*tanh(softplus(x))", doc="smooth")
    agree_with_torch(mish, functional.mish)
    assert "my_mish" in transfer_names()
    composed = parsing.parse_expression("2*my_mish(3*x)", {"x": x})
    assert composed == 6 * x * sympy.tanh(softplus(3 * x))


def test_a_sympy_expression_with_parameters_and_a_kink(clean_registry):
    t, limit = sympy.symbols("t limit")
    register_transfer("capped", sympy.Min(sympy.Max(t, 0), limit), parameters={"limit": 6})
    agree_with_torch(transfer("capped"), functional.relu6)
    assert transfer("capped", limit=2.5).parameters == (("limit", 2.5),)
    assert str(transfer("capped", limit=2.5)) == "capped(limit=2.5)"


def test_parameters_in_an_expression():
    parsed = parsing.parse_expression("leaky_relu(x, negative_slope=0.25)", {"x": x})
    assert parsed == select(x, x, x / 4)
    with pytest.raises(ExpressionError, match="no parameter 'slope'"):
        parsing.parse_expression("leaky_relu(x, slope=0.25)", {"x": x})
    with pytest.raises(ExpressionError, match="leaky_relu cannot be called so"):
        parsing.parse_expression("leaky_relu(x, 0.25)", {"x": x})


def test_functions_compose():
    y = sympy.Symbol("y", real=True)
    assert transfer("silu")(2 * y) == transfer("silu").expression.subs(x, 2 * y)


def test_a_name_is_declared_once(clean_registry):
    register_transfer("twice", "x**2")
    with pytest.raises(RegistrationError) as caught:
        register_transfer("twice", "x**3")
    assert "'twice' is already declared" in str(caught.value)
    assert f"first declared at {__file__}:" in str(caught.value)
    assert "override=True" in str(caught.value)
    register_transfer("twice", "x**3", override=True)
    assert parsing.parse_expression("twice(x)", {"x": x}) == x**3


@pytest.mark.parametrize(
    ("name", "expression", "error", "text"),
    [
        ("bad name", "x", RegistrationError, "'bad name' cannot name"),
        ("two", sympy.Symbol("p") * sympy.Symbol("q"), RegistrationError, "2 arguments: p, q"),
        (
            "typo",
            "x*sigmod(x)",
            ExpressionError,
            "transfer function 'typo', column 3[\\s\\S]*'sigmoid'",
        ),
        ("steep", sympy.gamma(sympy.Symbol("t")), ExpressionError, "no derivative rule"),
        ("hostile", "x.__class__", ExpressionError, "attribute access"),
    ],
)
def test_a_wrong_declaration_leaves_no_trace(clean_registry, name, expression, error, text):
    before = transfer_names()
    with pytest.raises(error, match=text):
        register_transfer(name, expression)
    assert transfer_names() == before


def test_unknown_names_and_parameters():
    with pytest.raises(ExpressionError, match="'rellu' is unknown[\\s\\S]*Did you mean 'relu'"):
        transfer("rellu")
    with pytest.raises(ExpressionError, match="no parameter 'alfa'[\\s\\S]*'alpha'"):
        transfer("elu", alfa=2.0)
