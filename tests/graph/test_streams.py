"""Streams: derivatives of outputs by inputs as nodes, against nested ``torch.func.jvp``."""

from __future__ import annotations

import random
import re
import warnings
from dataclasses import dataclass

import mpmath
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_networks import Mixed, mixed_network
from streams import derived, laplacian, value
from torch import Tensor, nn

from gncompile.errors import CompileError, KinkWarning
from gncompile.frontends.torch_export import trace
from gncompile.functions.faa_di_bruno import Partials, closed, partitions
from gncompile.functions.kinks import has_jump
from gncompile.functions.plain_torch import plain
from gncompile.functions.precise import precise_function
from gncompile.functions.primitives import select
from gncompile.functions.transfer import BUILT_IN
from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import ModelGraph, TracedModel
from gncompile.graph.nodes import Input, Node, Op, Origin, Output, Pointwise
from gncompile.graph.streams import Derivative, differentiate, differentiated

THIRD = (
    Derivative.along(0),
    Derivative.along(0, 1),
    Derivative.along(0, 0, 1),
    Derivative((((0, 0), 1.0), ((1, 1), 1.0))),
    Derivative((((0,), 1.0), ((1, 1, 1), -0.3))),
)
EXACT = 1e-10
"""Third derivatives of a dozen layers in float64, relative to the largest; a wrong term is 1e-3 of it."""


def error(traced: TracedModel, x: Tensor, *wanted: Derivative) -> float:
    """The largest difference from nested jvp's of the graph in plain torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KinkWarning)
        found = value(differentiated(traced, wanted), x)
    expected = derived(lambda t: value(traced, t), x, wanted)
    assert found.shape == expected.shape
    gap, size = (found - expected).detach().abs().max(), expected.detach().abs().max()
    return float(gap / size.clamp(min=1))


@st.composite
def networks(draw: st.DrawFn) -> Mixed:
    rng = draw(st.randoms(use_true_random=False, note_method_calls=False))
    torch.manual_seed(0)
    return mixed_network(rng, draw(st.integers(1, 4)), draw(st.integers(2, 3)))


@given(mixed=networks())
@settings(max_examples=5)
def test_networks_of_every_kind_of_node(mixed: Mixed) -> None:
    x = mixed.inputs(2, torch.Generator().manual_seed(0))
    if x.is_floating_point() and x[0].numel() > 1:
        traced = trace(mixed.model, x)
        assert error(traced, x.flatten(1), *THIRD) < EXACT, mixed.model


@pytest.mark.parametrize("seed", [18, 24])
def test_norms_attention_and_vectors_among_them(seed: int) -> None:
    torch.manual_seed(seed)
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    mixed = mixed_network(draw, draw.randint(1, 4), draw.randint(2, 3))
    x = mixed.inputs(2, generator)
    assert error(trace(mixed.model, x), x.flatten(1), *THIRD) < EXACT, mixed.model


class Gated(nn.Module):
    """Sines, a gate, a residual fork, softmax, one layer called twice, norms; of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again = nn.Linear(3, 4), nn.Linear(4, 4)
        self.rms, self.out = nn.RMSNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.sin(self.enter(torch.cat([x, t], dim=1)))
        h = h + torch.tanh(self.again(h)) * torch.sigmoid(self.again(h))
        h = self.rms(h) * torch.softmax(h, dim=1) + torch.log_softmax(h, dim=1)
        return self.out(nn.functional.normalize(h, dim=1))


def test_several_inputs_outputs_and_a_heat_equation() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(3, 2).double(), torch.rand(3, 1).double()
    traced = trace(Gated().double(), (x, t))
    heat = Derivative((((2,), 1.0), ((0, 0), -0.1), ((1, 1), -0.1)))
    joined = torch.cat([x, t], dim=1)
    assert error(traced, joined, heat, Derivative.along(2, 1)) < EXACT
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that a norm is bounded below is no kink to speak of
        named = differentiate(traced.graph, [Derivative.along(2, 1)], names=["x", "y", "t"])
    assert {"again__y", "out__y__t"} <= {node.name for node in named}
    assert named.output.size == 4
    assert differentiate(traced.graph, [Derivative.along(2)]).output.size == 4
    assert "enter__t" in differentiate(traced.graph, [Derivative.along(2)])


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_a_laplacian_is_one_stream(d: int) -> None:
    """The sum of its parts; d + 2 streams with the value, where the parts take 2 d + 1."""
    torch.manual_seed(d)
    model = nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(3, d).double()
    traced = trace(model.double(), x)
    parts = [Derivative.along(i, i) for i in range(d)]
    one, all_ = (differentiated(traced, w) for w in ([laplacian(d)], parts))
    summed = value(all_, x).unflatten(1, (1 + d, 2))[:, 1:].sum(dim=1)
    torch.testing.assert_close(value(one, x)[:, 2:], summed, rtol=1e-13, atol=1e-13)
    assert error(traced, x, laplacian(d)) < EXACT
    assert _places(one.graph, "2") == [1, d + 1]
    assert _places(all_.graph, "2") == [1, 2 * d]
    assert _places(one.graph, "4") == [1, 1]  # nothing but the Laplacian reaches the output


def _places(graph: ModelGraph, layer: str) -> list[int]:
    return [n.op.places for n in graph.layers[layer].uses if isinstance(n.op, Affine)]


def test_a_small_graph_before_and_after() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    graph = differentiate(trace(model, torch.zeros(1, 2)).graph, [Derivative.along(0)])
    text = re.sub(r" +", " ", graph.to_text())
    assert text.splitlines()[2:] == [
        "layer_1_tanh = tanh(layer_0) : [3] 1",
        "x__first = select[1 features](x) : [1]",
        "x__constant = 1 : [1]",
        "x__x0 = select[2 features](x__constant) : [2]",
        "layer_0__x0 = affine[0](x__x0) without bias : [3] 0",
        "layer_1_tanh__x0 = layer_0__x0*(1 - layer_1_tanh**2) : [3] 1",
        "layer_1_tanh__streams = select[6 features](layer_1_tanh, layer_1_tanh__x0) : [6]",
        "output = output(layer_1_tanh__streams) : [6]",
    ]


def test_what_is_zero_everywhere_is_zero() -> None:
    traced = trace(nn.Linear(2, 2).double(), x := torch.randn(3, 2).double())
    found = value(differentiated(traced, [laplacian(2), Derivative.along(1)]), x)
    assert not found[:, 2:4].any()
    torch.testing.assert_close(found[:, 4:], traced.parameters["weight"][:, 1].expand(3, 2))


def test_partitions_are_counted_by_bell_numbers() -> None:
    assert [len(list(partitions(tuple(range(n))))) for n in range(6)] == [1, 1, 2, 5, 15, 52]
    assert closed([Derivative.along(0, 1)]) == tuple(
        Derivative.along(*index) for index in ((0,), (1,), (0, 1))
    )


POINTS = (-600.0, -30.3, -4.1, -0.6, 0.3, 2.2, 17.7, 450.0)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_derivatives_of_functions_are_accurate_in_their_tails(name: str) -> None:
    """To third order, written in value and argument, against differences of 60 digits.

    1e-14 is some fifty roundings of numbers of size one: what a value such as tanh's tells of its slope.
    """
    function, y = BUILT_IN[name], sympy.Symbol("y", real=True)
    low, high = (float(bound) for bound in function.domain)
    points = [p for p in POINTS if low < p < high]
    x, at = function.argument, torch.tensor(points, dtype=torch.float64)
    partials = Partials(function.expression, (x,), y, "f")
    values = {x: at, y: plain(function.rule.value, {x: at}) + 0 * at}
    with mpmath.workdps(60):
        exactly = precise_function(function.expression, (x,))
        for order in (1, 2, 3):
            written = partials((0,) * order)
            for symbol, e in partials.named.items():
                values.setdefault(symbol, plain(e, values) + 0 * at)
            found = (plain(written, values) + 0 * at).tolist()
            for p, number in zip(points, found, strict=True):
                exact = mpmath.diff(exactly, mpmath.mpf(p), order)
                assert abs(number - exact) <= 1e-14 * (1 + abs(exact)), (order, p, number, exact)


X, Y = sympy.symbols("x y", real=True)


@pytest.mark.parametrize(
    ("e", "jumps"),
    [
        (select(X, X, 0), False),
        (select(X, 1, 0), True),
        (select(X, sympy.exp(X) - 1, X), False),
        (select(X, sympy.exp(X), 1 + X), False),
        (sympy.Abs(X), False),
        (sympy.sign(X), True),
        (X * sympy.sign(X), False),
        (select(X - Y, X, Y), False),
        (select(X - Y, 1, 0) * Y, True),
        (select(X - Y, 1, 0) * (X - Y), False),
        (select(Y, 1, 0) * X, False),  # not along x
        (select(3 - X, select(X + 3, X * (X + 3) / 6, 0), X), False),
        (select(X**2 - 1, 1, 0), True),
    ],
)
def test_jumps(e: sympy.Expr, jumps: bool) -> None:
    assert has_jump(e, X) is jumps


@pytest.mark.parametrize(
    ("function", "order"), [(nn.ReLU, 2), (nn.ELU, 3), (nn.Softsign, 3), (nn.Tanh, 4)]
)
def test_a_derivative_of_a_jump_is_said(function: type[nn.Module], order: int) -> None:
    """The node, where it stands, what to do; lower orders say nothing."""
    graph = trace(nn.Sequential(nn.Linear(1, 2), function()), torch.zeros(1, 1)).graph
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        differentiate(graph, [Derivative.along(*[0] * (order - 1))])
        if function is nn.Tanh:
            return
    with pytest.warns(KinkWarning, match=r"layer_1_.* \(module '1'\) has a kink(.|\n)*smooth"):
        differentiate(graph, [Derivative.along(*[0] * order)])


def test_second_derivatives_through_maxima_of_windows_are_said() -> None:
    graph = trace(nn.Sequential(nn.Tanh(), nn.MaxPool1d(2)), torch.zeros(1, 1, 4)).graph
    with pytest.warns(KinkWarning, match="max_pool1d"):
        differentiate(graph, [Derivative.along(0, 0)])


@dataclass(frozen=True)
class Cube(Op):
    """A kind of node from outside."""


def test_refusals_say_what_and_where() -> None:
    x, y = sympy.Symbol("x", real=True), Node("x", Input(), (), (2,))
    cube = Node("cube", Cube(), ("x",), (2,), Origin("block.cube", "net.py:3", "cube(x)"))
    graph = ModelGraph([y, cube, Node("output", Output(), ("cube",), (2,))])
    match = r"cube = cube\(x\) cannot be differentiated(.|\n)*module 'block.cube', net.py:3"
    with pytest.raises(CompileError, match=match):
        differentiate(graph, [Derivative.along(0)])
    tanh = Node("tanh", Pointwise(sympy.tanh(x), (x,)), ("x",), (2,))
    graph = ModelGraph([y, tanh, Node("output", Output(), ("tanh",), (2,))])
    with pytest.raises(CompileError, match=r"no input feature 2(.|\n)*takes 2: x0, x1"):
        differentiate(graph, [Derivative.along(2)])
    with pytest.raises(CompileError, match="1 names are given for 2 input features"):
        differentiate(graph, [Derivative.along(0)], names=["x"])
    for terms in ((), (((), 1.0),), (((0,), 1.0), ((0,), -1.0))):
        with pytest.raises(CompileError, match="is no derivative"):
            Derivative(terms)


class Frozen(nn.Module):
    """A frozen part that has no rules, before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cumsum(x.sort(dim=1).values, dim=1))


def test_inputs_before_a_frozen_part_are_refused() -> None:
    traced = trace(Frozen(), torch.zeros(2, 3))
    assert traced.trunk is not None
    with pytest.raises(CompileError, match="through a frozen part"):
        differentiated(traced, [Derivative.along(0)])
