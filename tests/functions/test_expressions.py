"""Expressions in torch: the reference against mpmath, emitted statements against the reference."""

import warnings

import pytest
import sympy
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gncompile.emit.torch_statements import torch_statements
from gncompile.errors import InternalError
from gncompile.functions import (
    clamp,
    erfc,
    expm1,
    log1p,
    number,
    select,
    sigmoid,
    softplus,
)
from gncompile.functions.derive import pointwise_rule
from gncompile.functions.expressions import evaluate
from gncompile.functions.transfer import ARGUMENT, transfer, transfer_names

x, y, z = ARGUMENT, sympy.Symbol("y", real=True), sympy.Symbol("z", real=True)
EXTREMES = [0.0, -0.0, 1e-30, -1e-30, 0.3, -0.7, 1, -1, 5, -5, 20, -20, 41, -41, 88, -89, 100, -100]
EXTREMES += [1e4, -1e4, 1e19, -1e19, 1e20, -1e20, 1e30, -1e30, 3e38, -3e38]


def run(expression, values, *, full=None, out=None):
    """Execute the emitted statements on NaN-filled tensors; inputs must survive, warnings are errors."""
    names = {symbol: symbol.name for symbol in values}
    shape = torch.broadcast_shapes(*(value.shape for value in values.values()))
    dtype = next(iter(values.values())).dtype
    space = {symbol.name: value.clone() for symbol, value in values.items()}
    count = 0

    def scratch(i):
        nonlocal count
        assert i <= count, "scratch tensors are numbered without gaps"
        count = max(count, i + 1)
        space[f"s{i}"] = torch.full(shape, float("nan"), dtype=dtype)
        return f"s{i}"

    target = out or "out"
    space.setdefault(target, torch.full(shape, float("nan"), dtype=dtype))
    statements = torch_statements(expression, names, target, scratch, full)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for statement in statements:
            exec(statement, {"torch": torch, **space})
    for symbol, value in values.items():
        if symbol.name != target:
            assert torch.equal(space[symbol.name], value), f"{symbol} was overwritten"
    assert space[target].dtype == dtype
    assert space[target].shape == shape
    return space[target], statements, count


def expressions_of(name):
    rule = transfer(name).rule
    return {
        "value": rule.value,
        "slope": rule.slopes[0],
        "kept": rule.kept_slopes[0],
        "second": rule.seconds[0, 0],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", transfer_names())
def test_everything_is_finite_where_the_mathematics_is(name, dtype):
    rule = transfer(name).rule
    inputs = torch.tensor(EXTREMES, dtype=dtype).reshape(4, -1)
    values = {x: inputs, rule.output: evaluate(rule.value, {x: inputs}).clone()}
    close = (
        {"rtol": 2e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-13, "atol": 1e-14}
    )
    for what, expression in expressions_of(name).items():
        expected = evaluate(expression, values).expand_as(inputs)
        got, _, _ = run(expression, values)
        wide = evaluate(expression, {s: v.double() for s, v in values.items()})
        finite = wide.expand_as(inputs).to(dtype).isfinite()
        assert torch.equal(expected.isfinite(), finite), (what, inputs[~expected.isfinite()])
        assert torch.equal(got.isfinite(), finite), (what, inputs[~got.isfinite()])
        torch.testing.assert_close(got, expected, **close, msg=lambda m, what=what: f"{what}: {m}")


@pytest.mark.parametrize("name", transfer_names())
def test_reference_agrees_with_mpmath(name):
    rule = transfer(name).rule
    points = [-30, -11.5, -2.25, -0.125, 0.5, 3, 17]
    inputs = torch.tensor(points, dtype=torch.float64)
    # 1 - tanh² cancels in both tails and is right in absolute terms only; every other tail keeps its digits.
    lost = 1e-15 if name == "tanh" else 1e-300
    for expression in (rule.value, rule.slopes[0]):
        got = evaluate(expression, {x: inputs}).expand_as(inputs)
        for point, value in zip(points, got.tolist(), strict=True):
            exact = float(expression.subs(x, number(point)).evalf(30))
            assert value == pytest.approx(exact, rel=2e-13, abs=lost), point


@pytest.mark.parametrize(
    "expression",
    [
        sympy.exp(-(x**2)) * x**2,
        sympy.exp(-(x**2)) * x**4 + 1,
        (1 - sympy.tanh(x**3) ** 2) * (1 + x**2),
        sigmoid(x) * sigmoid(-x) * (1 + x**2) ** 2,
        x * sympy.tanh(softplus(x)),
        x / (1 + sympy.Abs(x)),
    ],
)
def test_vanishing_factors_win_over_overflowing_powers(expression):
    inputs = torch.tensor(EXTREMES)
    rule = pointwise_rule(expression, (x,))
    for part in (rule.value, *rule.slopes):
        assert torch.isfinite(evaluate(part, {x: inputs})).all()
        assert torch.isfinite(run(part, {x: inputs})[0]).all()


STATEMENTS = [
    (x, ["out.copy_(x)"]),
    (sympy.Integer(3) / 4, ["out.fill_(0.75)"]),
    (x + y, ["torch.add(x, y, out=out)"]),
    (x - y / 2, ["torch.add(x, y, alpha=-0.5, out=out)"]),
    (x + y * z, ["torch.addcmul(x, y, z, out=out)"]),
    (1 - x**2, ["torch.mul(x, x, out=out)", "torch.sub(1.0, out, out=out)"]),
    (x * (1 - x), ["torch.addcmul(x, x, x, value=-1.0, out=out)"]),
    (y * (1 - x**2), ["torch.mul(y, x, out=out)", "torch.addcmul(y, out, x, value=-1.0, out=out)"]),
    (x**4, ["torch.mul(x, x, out=out)", "torch.mul(out, out, out=out)"]),
    (1 / x, ["torch.reciprocal(x, out=out)"]),
    (2 / x, ["torch.div(2.0, x, out=out)"]),
    (select(x, x, 0), ["torch.clamp(x, min=0.0, out=out)"]),
    (select(x, 1, 0), ["torch.gt(x, 0, out=out)"]),
    (select(x, 0, 3), ["torch.le(x, 0, out=out)", "torch.mul(out, 3.0, out=out)"]),
    (
        select(x, 1, number(0.01)),
        ["torch.gt(x, 0, out=out)", "torch.clamp(out, min=0.01, out=out)"],
    ),
    (select(x, x, x / 100), ["torch.mul(x, 0.01, out=out)", "torch.maximum(x, out, out=out)"]),
    (clamp(x, -1, 1), ["torch.clamp(x, min=-1.0, out=out)", "torch.clamp(out, max=1.0, out=out)"]),
    (select(x, y, z), ["torch.where(x > 0, y, z, out=out)"]),
    (x * sigmoid(x), ["torch.sigmoid(x, out=out)", "torch.mul(out, x, out=out)"]),
]


@pytest.mark.parametrize(("expression", "expected"), STATEMENTS, ids=lambda v: str(v)[:30])
def test_statements_are_those_a_person_would_write(expression, expected):
    values = {s: torch.randn(3, 5, dtype=torch.float64) for s in (x, y, z)}
    got, statements, count = run(expression, values)
    assert statements == expected
    assert count == 0
    torch.testing.assert_close(
        got, evaluate(expression, values).expand_as(got), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (
            y / sympy.sqrt(1 + 4 * x**2),
            [
                "out.fill_(1.0)",
                "torch.mul(x, 2.0, out=s0)",
                "torch.hypot(out, s0, out=s0)",
                "torch.div(y, s0, out=out)",
            ],
        ),
        (
            y * z / (1 + sympy.Abs(x)) ** 2 / 2,
            [
                "torch.mul(y, 0.5, out=out)",
                "torch.abs(x, out=s0)",
                "torch.add(s0, 1.0, out=s0)",
                "torch.div(out, s0, out=out)",
                "torch.mul(out, z, out=out)",
                "torch.div(out, s0, out=out)",
            ],
        ),
    ],
)
def test_quotients_are_divided_as_soon_as_they_can(expression, expected):
    values = {s: torch.randn(3, 5, dtype=torch.float64) for s in (x, y, z)}
    got, statements, _ = run(expression, values)
    assert statements == expected
    exact = sympy.lambdify((x, y, z), expression, "torch")(*values.values())
    torch.testing.assert_close(got, exact, rtol=1e-14, atol=0)  # a handful of roundings


@pytest.mark.parametrize(
    "expression", [x**2 / (1 + x**2), x / sympy.sqrt(1 + x**2), 2 * x**3 / (3 + 2 * x**2) ** 2]
)
def test_quotients_do_not_overflow_before_they_are_divided(expression):
    """float32 at 1e30, where the square is infinite, against float64, where it is not."""
    inputs = torch.tensor([1e-30, 1e-3, 1.0, 1e19, 1e30, -3e38])
    expected = evaluate(expression, {x: inputs.double()}).float()
    for got in (evaluate(expression, {x: inputs}), run(expression, {x: inputs})[0]):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-38)  # a handful of roundings


def test_equal_parts_are_computed_once():
    _, statements, count = run(
        sympy.tanh(x) + y * sympy.tanh(x) ** 2, {x: torch.randn(3), y: torch.randn(3)}
    )
    assert sum("tanh" in statement for statement in statements) == 1
    assert count <= 1


def test_scratch_is_reused():
    deep = x
    for _ in range(20):
        deep = sympy.sin(deep) + y * sympy.cos(deep)
    _, _, count = run(deep, {x: torch.randn(4), y: torch.randn(4)})
    assert count <= 2


@pytest.mark.parametrize(
    "expression",
    [y, y * z, sympy.tanh(y), y * z + x, select(y, x, z), select(y, z, 2), sympy.exp(z) / y + x**2],
)
def test_broadcast_operands(expression):
    values = {
        x: torch.randn(4, 3, dtype=torch.float64),
        y: torch.randn(3, dtype=torch.float64),
        z: torch.randn((), dtype=torch.float64),
    }
    got, _, _ = run(expression, values, full=frozenset({"x"}))
    torch.testing.assert_close(got, evaluate(expression, values).expand(4, 3), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "expression", [x * y, x * (1 - y**2) + sympy.sin(x), x - x * y, sympy.Integer(2)]
)
def test_an_input_may_be_the_output(expression):
    values = {x: torch.randn(4, 3), y: torch.randn(4, 3)}
    got, _, _ = run(expression, values, out="x")
    torch.testing.assert_close(got, evaluate(expression, values).expand_as(got))


def test_unknown_symbols_and_functions_are_our_bug():
    with pytest.raises(InternalError, match="no value was given for the symbol y"):
        evaluate(x * y, {x: torch.ones(2)})
    with pytest.raises(InternalError, match="no variable was named for the symbol y"):
        torch_statements(x * y, {x: "x"}, "out", str)
    with pytest.raises(InternalError, match="gamma reached the emitter"):
        torch_statements(sympy.gamma(x), {x: "x"}, "out", str)


def test_a_constant_has_the_dtype_of_the_values():
    assert evaluate(sympy.pi, {x: torch.ones(2, dtype=torch.float64)}).dtype == torch.float64
    assert evaluate(sympy.pi, {x: torch.ones(2)}).dtype == torch.float32


# Random expressions ---------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([-2, -1, 1, 2, 3]).map(sympy.Integer) | st.sampled_from(
    [number(v) for v in (0.1, -0.25, 1.7159)]
)
BOUNDED = [
    sympy.tanh,
    sigmoid,
    sympy.sin,
    sympy.cos,
    sympy.erf,
    erfc,
    sympy.atan,
    softplus,
    sympy.asinh,
]


def grow(parts):
    pairs = st.tuples(parts, parts)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] * p[1]),
        pairs.map(lambda p: p[0] / (2 + p[1] ** 2)),
        st.tuples(st.sampled_from(BOUNDED), parts).map(lambda p: p[0](p[1])),
        parts.map(lambda p: sympy.exp(-(p**2))),
        parts.map(lambda p: expm1(sympy.sin(p))),
        parts.map(lambda p: log1p(p**2)),
        parts.map(lambda p: sympy.Abs(p)),
        parts.map(lambda p: sympy.sqrt(1 + p**2)),
        st.tuples(parts, st.integers(2, 3)).map(lambda p: p[0] ** p[1]),
        st.tuples(parts, parts, parts).map(lambda p: select(*p)),
        pairs.map(lambda p: select(p[0], p[0], p[1])),
    )


EXPRESSIONS = st.recursive(st.sampled_from([x, y]) | NUMBERS, grow, max_leaves=7)


def sample():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
    return dict(zip((x, y), draw, strict=True))


@given(EXPRESSIONS)
def test_emitted_statements_equal_the_reference(expression):
    values = sample()
    expected = evaluate(expression, values).expand(6, 4)
    assume(bool((expected.abs() < 1e6).all()))
    got, _, _ = run(expression, values)
    scale = 1 + expected.abs().max()
    # Sums and products are taken in another order: a few roundings of intermediate results.
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-10)


@given(EXPRESSIONS)
def test_derived_slopes_equal_autograd(expression):
    arguments = tuple(s for s in (x, y) if s in expression.free_symbols)
    assume(arguments)
    rule = pointwise_rule(expression, arguments)
    values = {s: v.requires_grad_() for s, v in sample().items()}
    value = evaluate(expression, values)
    assume(value.requires_grad and bool((value.abs() < 1e6).all()))
    used = [values[s] for s in arguments]
    gradients = torch.autograd.grad(value.sum(), used, allow_unused=True, materialize_grads=True)
    plain = {s: v.detach() for s, v in values.items()}
    kept = {**plain, rule.output: evaluate(rule.value, plain).expand(6, 4)}
    for expected, slope, kept_slope in zip(gradients, rule.slopes, rule.kept_slopes, strict=True):
        assume(bool((expected.abs() < 1e6).all()))
        scale = 1 + expected.abs().max()
        for got in (evaluate(slope, plain), evaluate(kept_slope, kept)):
            torch.testing.assert_close(
                got.expand(6, 4) / scale, expected / scale, rtol=0, atol=1e-9
            )
