"""Operations on grids: both backends against ``torch.nn.functional`` and autograd, in every geometry."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import assert_close
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gncompile.graph.windows import Geometry, Window
from gncompile.program import convolutions as grids
from gncompile.program.specs import Spec
from gncompile.runtime import convolutions
from gncompile.runtime.reference_convolutions import windowed

N = 3
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@st.composite
def windows(draw: st.DrawFn, pooling: bool = False) -> Window:
    """Grids of 1 to 3 dimensions, windows even and odd, of one tap and as large as the padded grid."""
    rank = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    padding = tuple(draw(st.integers(0, k // 2 if pooling else 2)) for k in kernel)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(
        draw(st.integers(max(1, r - 2 * p), max(1, r - 2 * p) + 3))
        for r, p in zip(reach, padding, strict=True)
    )
    stride = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    return Window(size, kernel, stride, padding, dilation, pooling and draw(st.booleans()))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    groups = draw(st.integers(1, 3))
    inputs, outputs = (groups * draw(st.integers(1, 2)) for _ in range(2))
    return Geometry(draw(windows()), inputs, outputs, groups)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(op: grids.Windowed, *v: Tensor) -> list[Tensor]:
    """By the reference, and as emitted steps compute it into a buffer of NaN; the shape is the rule's."""
    shape = op.result([Spec(tuple(x.shape)) for x in v]).shape
    out = torch.full([int(d) for d in shape], torch.nan, dtype=v[0].dtype)
    match op:
        case grids.Convolve(g):
            convolutions.convolve(*v[:2], v[2] if len(v) > 2 else None, g, out=out)
            assert_close(convolutions.convolve(*v[:2], v[2] if len(v) > 2 else None, g), out)
        case grids.ConvolveAdjoint(g):
            convolutions.adjoint(*v, g, out=out)
        case grids.ConvolveGradient(g, homogeneous):
            convolutions.gradient(*v, g, homogeneous, out=out)
        case grids.Patches(g):
            convolutions.patches(*v, g, out=out)
        case grids.Spread(window):
            convolutions.spread(v[0], v[1] if len(v) > 1 else None, window, out=out)
        case grids.MaxPool() | grids.SumPool() | grids.Winners() | grids.Pick():
            names = {grids.MaxPool: "max_pool", grids.SumPool: "sum_pool"}
            name = names.get(type(op), type(op).__name__.lower())
            getattr(convolutions, name)(*v, op.window, out=out)
    found = windowed(op, list(v))
    assert found.shape == out.shape
    return [found, out]


def check(expected: Tensor, op: grids.Windowed, *v: Tensor) -> None:
    for got in results(op, *v):
        assert_close(got.reshape(expected.shape), expected, what=type(op).__name__)


def on_grid(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return x.unflatten(-1, (-1, *size))


@settings(max_examples=60, deadline=None)
@given(geometries(), st.booleans())
def test_convolutions_are_those_of_torch(g: Geometry, biased: bool) -> None:
    w, rank = g.window, len(g.window.size)
    x = random(N, g.size).requires_grad_()
    weight = random(g.outputs, g.columns, seed=1).requires_grad_()
    bias = random(g.outputs, seed=2).requires_grad_()
    shaped = weight.view(g.outputs, -1, *w.kernel)
    shared = (bias if biased else None, w.stride, w.padding, w.dilation, g.groups)
    y = CONVOLVE[rank](on_grid(x, w.size), shaped, *shared).flatten(1)
    assert y.shape[1] == g.outputs * g.places
    vectors = random(*y.shape, seed=3)
    back, slope = torch.autograd.grad(y, (x, weight), vectors, retain_graph=True)
    operands = [x.detach(), weight.detach(), *([bias.detach()] if biased else [])]
    check(y.detach(), grids.Convolve(g), *operands)
    check(back, grids.ConvolveAdjoint(g), vectors, weight.detach())
    if biased:
        (column,) = torch.autograd.grad(y, bias, vectors)
        slope = torch.cat([slope, column[:, None]], dim=1)
    check(slope / N, grids.ConvolveGradient(g, biased), vectors, x.detach())
    # What a weight sees at every place: the same product written out.
    for patches in results(grids.Patches(g), x.detach()):
        by_group = patches.unflatten(-1, (g.groups, g.places))
        rows = weight.detach().unflatten(0, (g.groups, -1))
        written = torch.einsum("goc,cngt->ngot", rows, by_group).reshape(N, -1)
        plain = CONVOLVE[rank](on_grid(x, w.size), shaped, None, *shared[1:]).flatten(1)
        assert_close(written, plain.detach())


@settings(max_examples=20, deadline=None)
@given(windows(), st.integers(1, 2))
def test_vectors_of_one_tap_go_to_the_points_that_places_see(w: Window, leading: int) -> None:
    ones = (1,) * len(w.size)
    g = Geometry(Window(w.size, ones, w.stride, (0,) * len(w.size), w.dilation), 2, 3)
    stack = random(*(2,) * (leading - 1), N, g.outputs * g.places)
    weight = random(g.outputs, g.columns, seed=1)
    check(
        windowed(grids.ConvolveAdjoint(g), [stack, weight]), grids.ConvolveAdjoint(g), stack, weight
    )
    assert_close(
        convolutions.adjoint(stack, weight, g),  # into memory of its own
        windowed(grids.ConvolveAdjoint(g), [stack, weight]),
    )


def test_columns_go_through_like_samples() -> None:
    g = Geometry(Window((5, 4), (3, 2), (2, 1), (1, 0), (1, 1)), 2, 3)
    weight, stack = random(3, g.columns), random(6, N, g.size)
    for got in results(grids.Convolve(g), stack[:, 1:], weight):
        each = [windowed(grids.Convolve(g), [x, weight]) for x in stack[:, 1:]]
        assert_close(got, torch.stack(each))


def max_pool(x: Tensor, w: Window) -> Any:
    pool = MAX_POOL[len(w.size)]
    return pool(x, w.kernel, w.stride, w.padding, w.dilation, w.ceil).flatten(1)


@settings(max_examples=60, deadline=None)
@given(windows(pooling=True), st.booleans())
def test_maxima_and_their_winners_are_those_of_torch(w: Window, tied: bool) -> None:
    assume(all(max(sources) >= 0 for sources in w.sources))  # a window of padding alone has none
    points = math.prod(w.size)
    x = random(N, 2 * points)
    x = (x.round() if tied else x).requires_grad_()  # of equal maxima the first wins
    y = max_pool(on_grid(x, w.size), w)
    check(y.detach(), grids.MaxPool(w), x.detach())
    vectors, r = random(*y.shape, seed=1), random(N, 2 * points, seed=2)
    (back,) = torch.autograd.grad(y, x, vectors)
    for chosen in results(grids.Winners(w), x.detach(), y.detach()):
        check(back, grids.Spread(w), vectors, chosen)
        # Spread is linear in its vectors: Pick is its adjoint.
        for picked in results(grids.Pick(w), r, chosen):
            assert_close((picked * vectors).sum(), (r * back).sum())
        columns = random(4, *y.shape, seed=3)
        for got in results(grids.Spread(w), columns, chosen):
            each = [windowed(grids.Spread(w), [c, chosen]) for c in columns]
            assert_close(got, torch.stack(each))


@settings(max_examples=30, deadline=None)
@given(windows(pooling=True))
@example(Window((2, 4, 6), (2, 2, 3), (2, 2, 3), (0, 0, 0), (1, 1, 1)))  # tiles
def test_sums_are_convolutions_with_ones(w: Window) -> None:
    assume(not w.ceil)
    x = random(N, 2 * math.prod(w.size)).requires_grad_()
    channels = on_grid(x, w.size).flatten(0, 1)[:, None]
    ones = torch.ones(1, 1, *w.kernel).double()
    y = CONVOLVE[len(w.size)](channels, ones, None, w.stride, w.padding, w.dilation).reshape(N, -1)
    check(y.detach(), grids.SumPool(w), x.detach())
    vectors = random(*y.shape, seed=1)
    (back,) = torch.autograd.grad(y, x, vectors)
    check(back, grids.Spread(w), vectors)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e300])
def test_a_maximum_is_found_among_all_numbers(value: float) -> None:
    w = Window((4,), (2,), (2,), (0,), (1,))
    x = torch.tensor([[0.0, value, -1e300, -1e300]]).double()
    for y in results(grids.MaxPool(w), x):
        torch.testing.assert_close(y, max_pool(x[:, None], w), equal_nan=True)
