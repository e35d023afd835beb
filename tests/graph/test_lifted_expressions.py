"""Elementwise torch code: lifted to one expression, named after its line, or refused with its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from architectures import normal
from comparison import assert_close
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gncompile.errors import TraceError
from gncompile.frontends import trace
from gncompile.functions.derive import pointwise_rule
from gncompile.functions.expressions import evaluate
from gncompile.functions.transfer import ARGUMENT, transfer
from gncompile.graph.fuse_pointwise import fuse_pointwise
from gncompile.graph.model_graph import TracedModel
from gncompile.graph.nodes import Input, Node, Output, Pointwise, Select

WIDTH, BATCH = 3, 40
NAMES = {"torch": torch, "F": functional}

# Random expressions ---------------------------------------------------------------------------------------

# What grows is damped, so that values stay below some hundreds and their rounding below 1e-9.
UNARY = [
    *("torch.tanh({})", "torch.sigmoid({})", "torch.sin({})", "torch.cos({})", "torch.atan({})"),
    *("torch.asinh({})", "torch.erf({})", "torch.erfc({})", "torch.abs({})", "torch.neg({})"),
    *("torch.exp(-({}).square())", "torch.exp2(torch.sin({}))", "torch.log1p(({}) ** 2)"),
    *("torch.expm1(torch.tanh({}))", "torch.log(({}) ** 2 + 1)", "torch.sqrt(1 + ({}).square())"),
    *("torch.rsqrt(2 + ({}).square())", "torch.reciprocal(1.5 + torch.cos({}))", "({}) ** 2 / 4"),
    *("torch.sinh(torch.sin({}))", "torch.cosh(torch.sigmoid({}))", "torch.tan(torch.tanh({}))"),
    *("2.0 ** torch.tanh({})", "torch.clamp({}, -0.7, 1.3)", "({}).clamp(min=0.1)", "1 - ({})"),
    *("F.relu({})", "F.relu6({})", "F.leaky_relu({}, 0.2)", "F.elu({})", "F.selu({})"),
    *("F.celu({}, 0.5)", "F.gelu({})", "F.gelu({}, approximate='tanh')", "F.silu({})"),
    *("F.softplus({}, threshold=50)", "F.softsign({})", "F.hardtanh({})", "F.hardswish({})"),
    *("F.hardshrink({})", "F.softshrink({})", "F.tanhshrink({})", "F.logsigmoid({})", "F.mish({})"),
    *("F.threshold({}, 0.4, -0.2)", "torch.sign({}) * 0.5", "torch.rsub({}, 2, alpha=0.5)"),
]
BINARY = [
    *("({} + {})", "({} - {})", "({} * {})", "torch.maximum({}, {})", "torch.minimum({}, {})"),
    *("({}) / (1 + ({}).square())", "torch.where({} > 0.3137, {}, 0.5)", "torch.max({}, {})"),
    *("torch.lerp({}, {}, 0.3)", "torch.addcmul({}, {}, torch.sigmoid(x), value=0.5)"),
    *(
        "torch.sigmoid({}) * {}",
        "({}).masked_fill({} < -0.2119, 0.7)",
        "(({}) >= 0.1234) * ({} + 0 * x)",
    ),
]


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    """Torch code over ``x`` and ``y``."""
    if depth == 0:
        return draw(
            st.sampled_from(["x", "y", "x", "y", "0.7 - 0 * x", "x.new_full(x.shape, 1.3)"])
        )
    template = draw(st.sampled_from(UNARY + BINARY + BINARY))
    parts = [draw(expressions(depth - 1)) for _ in range(template.count("{}"))]
    return template.format(*(f"({part})" for part in parts))


class Branches(nn.Module):
    """Several expressions side by side, ``[N, k, WIDTH]``."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.functions = [eval(f"lambda x, y: {text}", NAMES) for text in texts]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([f(x, y) + 0 * x for f in self.functions], dim=1)


Pair = tuple[Tensor, Tensor]


def with_tangent(traced: TracedModel, inputs: list[Tensor], moved: int, kept: bool) -> Pair:
    """Output and its derivative along input ``moved``, by the derived slopes of every node."""
    at: dict[str, Pair] = {}
    for node in traced.graph:
        given = [at[name] for name in node.inputs]
        at[node.name] = _node_with_tangent(traced, node, given, inputs, moved, kept)
    return at[traced.graph.output.name]


def _node_with_tangent(
    traced: TracedModel, node: Node, given: list[Pair], inputs: list[Tensor], moved: int, kept: bool
) -> Pair:
    op = node.op
    if isinstance(op, Input):
        x = inputs[op.position]
        return x, torch.full_like(x, float(op.position == moved))
    if isinstance(op, Select):
        whole = (torch.cat(parts, dim=1) for parts in zip(*given, strict=True))
        value, tangent = (part[:, list(op.index)] for part in whole)
        return value, tangent
    if isinstance(op, Output):
        return given[0]
    assert isinstance(op, Pointwise)
    rule = pointwise_rule(op.expression, op.arguments)
    symbols = {s: value for s, (value, _) in zip(rule.arguments, given, strict=True)}
    symbols |= {s: traced.constants[name] for s, name in op.constants}
    value = evaluate(rule.value, symbols).expand_as(given[0][0])
    slopes = rule.kept_slopes if kept else rule.slopes
    terms = [
        evaluate(slope, {**symbols, rule.output: value}) * tangent
        for slope, (_, tangent) in zip(slopes, given, strict=True)
    ]
    return value, sum(terms[1:], start=terms[0])


@given(texts=st.lists(expressions(), min_size=12, max_size=12))
@settings(max_examples=10, phases=[Phase.generate])  # shrinking would export hundreds of times
def test_random_expressions_agree_with_torch_and_autograd(texts: list[str]) -> None:
    """Tens of roundings on numbers of some hundreds stay below 1e-12; a wrong slope shows at 1e-3."""
    module = Branches(texts).double()
    generator = torch.Generator().manual_seed(3)
    inputs = [1.5 * normal(generator, BATCH, WIDTH).requires_grad_() for _ in range(2)]
    expected = module(*inputs).flatten(1)
    traced = trace(module, tuple(x.detach() for x in inputs))
    traced = traced.with_graph(fuse_pointwise(traced.graph))
    leaves = [x.detach() for x in inputs]
    for moved, x in enumerate(inputs):
        # a branch is elementwise, so the gradient of its sum is its slope everywhere
        slopes = [_slope(block, x) for block in expected.split(WIDTH, dim=1)]
        for kept in (False, True):
            value, tangent = with_tangent(traced, leaves, moved, kept)
            for i, text in enumerate(texts):
                part = slice(i * WIDTH, (i + 1) * WIDTH)
                assert_close(value[:, part], expected[:, part], 1e-10, text)
                assert_close(tangent[:, part], slopes[i], 1e-10, f"slope of {text}")


def _slope(block: Tensor, x: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(block.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if slope is None else slope


# Names and places -----------------------------------------------------------------------------------------


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        t = torch.tanh(h)
        return t * torch.sigmoid(t) + h  # the whole chain


class Outer(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = Inner(), last

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.inner(x))
        return y


def test_a_chain_is_one_node_with_the_line_that_ends_it() -> None:
    graph = fuse_pointwise(trace(Outer(nn.Linear(WIDTH, 2)), torch.zeros(2, WIDTH)).graph)
    (node,) = (n for n in graph if isinstance(n.op, Pointwise))
    assert node.inputs == ("inner_layer",)
    assert node.origin.module == "inner"
    file, line = node.origin.location.split(":")
    assert file == "test_lifted_expressions.py"
    assert node.name == f"inner_line_{line}"
    assert node.origin.code.startswith("return t * torch.sigmoid(t) + h")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (lambda h: h / (1 + torch.exp(-h)), "silu"),
        (lambda h: h * torch.tanh(torch.log(1 + torch.exp(h))), "mish"),
        (lambda h: torch.log(1 + torch.exp(h)), "softplus"),
        (lambda h: torch.maximum(h, torch.zeros_like(h)), "relu"),
        (lambda h: (torch.exp(h) - torch.exp(-h)) / (torch.exp(h) + torch.exp(-h)), "tanh"),
        (lambda h: torch.where(h > 0, h, torch.exp(h) - 1), "elu"),
        (lambda h: 1 / (1 + torch.exp(-h)), "sigmoid"),
    ],
)
def test_what_is_written_out_simplifies_to_the_declared_function(
    written: Callable[[Tensor], Tensor], name: str
) -> None:
    module = nn.Module()
    module.forward = written
    graph = fuse_pointwise(trace(module, torch.zeros(2, WIDTH, dtype=torch.float64)).graph)
    (op,) = (n.op for n in graph if isinstance(n.op, Pointwise))
    value = pointwise_rule(op.expression, op.arguments).value
    assert value == transfer(name).rule.value.xreplace({ARGUMENT: op.arguments[0]})


def test_a_lifted_tail_keeps_its_digits() -> None:
    """``erfc(-x)`` near zero must not become ``2 - erfc(x)``, which has none left at ``x = -8``."""
    module = nn.Module()
    module.forward = lambda h: torch.erfc(-h)
    (op,) = (
        n.op
        for n in fuse_pointwise(trace(module, torch.zeros(2, 1)).graph)
        if isinstance(n.op, Pointwise)
    )
    h = torch.tensor([-8.0], dtype=torch.float64)
    rule = pointwise_rule(op.expression, op.arguments)
    assert_close(1e30 * evaluate(rule.value, {op.arguments[0]: h}), 1e30 * torch.erfc(-h), 1e-12)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch.special.bessel_j0, "special_bessel_j0"),
        (torch.digamma, "digamma"),
        (torch.floor, "floor cannot be compiled: its slope is zero"),
        (lambda h: torch.softmax(h, 1), "softmax cannot be compiled"),
        (lambda h: h**h, "pow cannot be compiled: a power needs a number"),
        (lambda h: torch.div(h, 2, rounding_mode="floor"), "div"),
        (lambda h: torch.cumprod(h, 1), "cumprod"),
    ],
)
def test_what_cannot_be_lifted_is_named_with_its_place(
    function: Callable[[Tensor], Tensor], operator: str
) -> None:
    class Last(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return function(h)  # here

    with pytest.raises(TraceError) as caught:
        trace(Outer(Last()), torch.zeros(2, WIDTH))
    assert operator in str(caught.value)
    assert "module 'last', test_lifted_expressions.py:" in str(caught.value)
