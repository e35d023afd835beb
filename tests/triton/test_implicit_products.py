"""Convolutions as implicit products, in the interpreter, against torch's own and its autograd in float64."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from comparison import assert_close
from matrices import TOLERANCE, assert_surroundings_untouched, matrix, result
from torch import Tensor
from torch.nn import functional

from gncompile.errors import InternalError
from gncompile.graph.windows import Geometry, Window
from gncompile.triton_kernels.convolution import (
    convolve,
    convolve_adjoint,
    convolve_gradient,
    patch_moment,
)
from gncompile.triton_kernels.patches import forward
from gncompile.triton_kernels.settings import MatrixSettings

SMALL = MatrixSettings(16, 16, 16)
SPLIT = MatrixSettings(16, 16, 16, split=3)


def geometry(
    inputs: int,
    outputs: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Geometry:
    every = [(n,) * len(size) for n in (stride, padding, dilation)]
    return Geometry(Window(size, kernel, *every), inputs, outputs, groups)


GEOMETRIES = {
    "one axis": geometry(3, 5, (7,), (3,), padding=1),
    "odd sizes, stride and padding": geometry(2, 3, (5, 7), (3, 2), stride=2, padding=1),
    "stride beyond the kernel": geometry(2, 3, (7, 5), (1, 2), stride=3),
    "dilation": geometry(2, 17, (6, 5), (2, 3), padding=2, dilation=2),
    "groups": geometry(4, 6, (4, 3), (2, 2), padding=1, groups=2),
    "one channel a group": geometry(3, 3, (5, 4), (3, 3), stride=2, padding=1, groups=3),
    "one point": geometry(1, 1, (1, 1), (1, 1)),
    "one place": geometry(2, 3, (3, 2), (3, 2)),
    "three axes": geometry(2, 2, (3, 2, 4), (2, 1, 3), stride=2, padding=1),
}
EVERY = pytest.mark.parametrize("of", GEOMETRIES.values(), ids=GEOMETRIES)
ODD = GEOMETRIES["odd sizes, stride and padding"]
SAMPLES = 3


def weight_of(of: Geometry, dtype: torch.dtype = torch.float64) -> Tensor:
    return matrix(of.outputs, of.columns, dtype)


def grids(channels: int, size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return matrix(SAMPLES, channels * math.prod(size), dtype, pad=1)


def inputs_of(of: Geometry, dtype: torch.dtype = torch.float64) -> Tensor:
    return grids(of.inputs, of.window.size, dtype)


def vectors_of(of: Geometry, dtype: torch.dtype = torch.float64) -> Tensor:
    return grids(of.outputs, of.window.places, dtype)


def expected(of: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """By torch, in float64."""
    w = of.window
    torchs = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(w.size)]
    kernels = weight.double().reshape(of.outputs, of.inputs // of.groups, *w.kernel)
    found = torchs(
        x.double().unflatten(-1, (of.inputs, *w.size)), kernels, bias,
        w.stride, w.padding, w.dilation, of.groups,
    )  # fmt: skip
    return found.flatten(1)


def patches(of: Geometry, x: Tensor) -> Tensor:
    """``[samples · places · groups, columns]``: a convolution with the columns one by one."""
    columns = torch.eye(of.columns).double()
    channels = x.unflatten(-1, (of.groups, -1)).unbind(1)
    alone = Geometry(of.window, of.inputs // of.groups, of.columns)
    every = [expected(alone, c, columns).unflatten(-1, (of.columns, -1)) for c in channels]
    return torch.stack(every, dim=-1).movedim(1, -1).flatten(end_dim=-2)


@triton.jit
def sigmoid_and_slope(h, full, row, column):
    a = tl.sigmoid(h + row) + column
    return a * full, a * (1.0 - a)


# --- values and vectors back --------------------------------------------------------------------------


@EVERY
def test_a_convolution(of: Geometry) -> None:
    x, weight, bias = inputs_of(of), weight_of(of), torch.randn(of.outputs).double()
    out = vectors_of(of).fill_(torch.nan)
    convolve(x, weight, out, of, bias=bias, settings=SMALL)
    assert_close(out, expected(of, x, weight, bias), TOLERANCE[torch.float64])
    assert_surroundings_untouched(out)


@EVERY
def test_its_adjoint(of: Geometry) -> None:
    x, weight, g = inputs_of(of), weight_of(of), vectors_of(of)
    _, pull = torch.func.vjp(lambda x: expected(of, x, weight), x)
    out = inputs_of(of).fill_(torch.nan)
    convolve_adjoint(g, weight, out, of, settings=SMALL)
    assert_close(out, pull(g)[0], TOLERANCE[torch.float64])
    assert_surroundings_untouched(out)


@pytest.mark.parametrize("of", [ODD, GEOMETRIES["groups"]], ids=["odd", "groups"])
def test_an_epilogue_with_two_results(of: Geometry) -> None:
    """Of tensors that are broadcast along the samples, along the features, and not at all."""
    x, weight, out, slopes = inputs_of(of), weight_of(of), vectors_of(of), vectors_of(of)
    full, row, column = vectors_of(of), torch.randn(out.shape[1]).double(), out.new_ones(SAMPLES, 1)
    convolve(
        x, weight, out.fill_(torch.nan), of, epilogue=sigmoid_and_slope,
        epilogue_inputs=[full, row, column], outputs=[slopes.fill_(torch.nan)], settings=SMALL,
    )  # fmt: skip
    a = torch.sigmoid(expected(of, x, weight) + row) + column
    assert_close(out, a * full, TOLERANCE[torch.float64])
    assert_close(slopes, a * (1 - a), TOLERANCE[torch.float64])


def test_columns_of_samples_and_slices() -> None:
    """Leading dimensions that are one, and rows of which every second column is another's."""
    weight = matrix(ODD.outputs, 2 * ODD.columns, torch.float64)[:, ::2]
    x = torch.randn(2, SAMPLES, 2 * ODD.size).double()[..., ::2]
    out = torch.full((2, SAMPLES, ODD.outputs * ODD.places), torch.nan).double()
    convolve(x, weight, out, ODD, settings=SMALL)
    wanted = expected(ODD, x.flatten(end_dim=1), weight)
    assert_close(out.flatten(end_dim=1), wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_and_default_settings(dtype: torch.dtype) -> None:
    x, weight = inputs_of(ODD, dtype), weight_of(ODD, dtype)
    out = vectors_of(ODD, torch.float32)
    convolve(x, weight, out, ODD)
    assert_close(out, expected(ODD, x, weight), TOLERANCE[dtype])


# --- sums over places ---------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("settings", [SMALL, SPLIT], ids=["whole", "split"])
def test_the_gradient_of_a_weight(of: Geometry, settings: MatrixSettings) -> None:
    x, weight, g = inputs_of(of), weight_of(of), vectors_of(of)
    bias = torch.zeros(of.outputs).double()
    _, pull = torch.func.vjp(lambda w, b: expected(of, x, w, b), weight, bias)
    exact, of_bias = (0.5 * gradient for gradient in pull(g))
    out = result(of.outputs, of.columns + 1, torch.float64)
    words = {"alpha": 0.5, "settings": settings}
    convolve_gradient(g, x, out, of, homogeneous=True, **words)
    assert_close(out, torch.cat([exact, of_bias[:, None]], dim=1), TOLERANCE[torch.float64])
    assert_surroundings_untouched(out)
    out = result(of.outputs, of.columns, torch.float64)
    convolve_gradient(g, x, out, of, **words)
    assert_close(out, exact, TOLERANCE[torch.float64])


@EVERY
@pytest.mark.parametrize("homogeneous", [False, True])
def test_the_moment_of_patches(of: Geometry, homogeneous: bool) -> None:
    x = inputs_of(of)
    rows = patches(of, x)
    if homogeneous:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    size = of.columns + homogeneous
    out = result(size, size, torch.float64)
    settings = SPLIT if homogeneous else SMALL
    patch_moment(x, out, of, alpha=0.25, homogeneous=homogeneous, settings=settings)
    assert_close(out, 0.25 * rows.mT @ rows, TOLERANCE[torch.float64])
    assert torch.equal(out, out.mT)
    assert_surroundings_untouched(out)


# --- what is refused, what is left out ----------------------------------------------------------------


def test_only_axes_that_windows_leave_are_checked() -> None:
    """A mask of every element costs more than the rest of its address."""
    assert forward(ODD.window, by_place=True).checked == (True, True)
    assert forward(GEOMETRIES["one place"].window, by_place=True).checked == (False, False)
    assert forward(geometry(1, 1, (4, 4), (3, 3), stride=2).window, by_place=True).checked == (
        False,
        False,
    )


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight, out = inputs_of(ODD), weight_of(ODD), vectors_of(ODD)
    with pytest.raises(InternalError, match="weight has the wrong shape"):
        convolve(x, weight[:, 1:], out, ODD)
    with pytest.raises(InternalError, match="the grid has the wrong shape"):
        convolve(x[:, 1:], weight, out, ODD)
    with pytest.raises(InternalError, match="out has the wrong shape"):
        convolve_adjoint(out, weight, x[:, 1:], ODD)
    with pytest.raises(InternalError, match="bias has the wrong shape"):
        convolve(x, weight, out, ODD, bias=torch.zeros(1))
    with pytest.raises(InternalError, match="g has the wrong shape"):
        convolve_gradient(out[1:], x, weight, ODD)
    with pytest.raises(InternalError, match="more than a kernel counts"):
        convolve(x[:1].expand(2**29, -1), weight, out[:1].expand(2**29, -1), ODD)
