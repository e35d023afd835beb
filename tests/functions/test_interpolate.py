"""Interpolation: values and slopes against torch's grid_sample, and against the kernel's definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor
from torch.func import hessian, jacrev, vmap

import gncompile
from gncompile.errors import CompileError
from gncompile.functions.interpolate import Interpolant, interpolated

SIZES = {1: (6,), 2: (5, 7), 3: (4, 5, 3)}
SETTINGS = list(itertools.product(("linear", "cubic"), ("zeros", "border", "reflection")))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double()


def by_torch(grid: Tensor, places: Tensor, kernel: str, padding: str, corners: bool) -> Tensor:
    """``[N, C, P]`` at places ``[N, P, d]`` in ``[-1, 1]``, the last axis first."""
    rank = grid.dim() - 1
    mode = {"linear": "bilinear", "cubic": "bicubic"}[kernel]
    shaped = places.reshape(len(places), *[1] * (rank - 1), -1, rank)
    images = grid.expand(len(places), *grid.shape)
    y = F.grid_sample(images, shaped, mode=mode, padding_mode=padding, align_corners=corners)
    return y.flatten(2)


@pytest.mark.parametrize(("kernel", "padding"), SETTINGS)
@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("rank", [2, 3])
def test_values_and_slopes_are_those_of_grid_sample(
    kernel: str, padding: str, corners: bool, rank: int
) -> None:
    """Inside, outside, and exactly on the grid's points and edges, where torch chooses a slope."""
    if (kernel, rank) == ("cubic", 3):
        return  # torch has none
    size = SIZES[rank]
    grid = normal(0, 2, *size)
    at = 4 * uniform(1, 3, 40, rank) - 2
    points = torch.linspace(-1, 1, 5).double()  # the outer points, and others
    at[0, : 5**2] = torch.cartesian_prod(*[points] * 2)[:, [0, 1, 1][:rank]]
    at.requires_grad_()
    expected = by_torch(grid, at, kernel, padding, corners)
    scales = [(s - 1) / 2 if corners else s / 2 for s in size]
    places = [
        scale * at[..., rank - 1 - i] + (s - 1) / 2
        for i, (scale, s) in enumerate(zip(scales, size, strict=True))
    ]
    of = Interpolant(size, kernel, padding, corners, (0,) * rank)  # type: ignore[arg-type]
    found = interpolated(of, grid, [p[:, None] for p in places])
    # a few roundings of sums of at most 16 terms of size 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    weights = normal(2, *expected.shape)
    (slopes,) = torch.autograd.grad((expected * weights).sum(), at)
    (own,) = torch.autograd.grad((found * weights).sum(), at)
    torch.testing.assert_close(own, slopes, rtol=0, atol=1e-12)
    by_axis = []  # the same by derivatives of the kernel
    for i in range(rank):
        slope = of.derivative(i)
        assert slope is not None
        d = interpolated(slope, grid, [p[:, None].detach() for p in places])
        by_axis.append(scales[i] * (d * weights).sum(1))
    torch.testing.assert_close(torch.stack(by_axis[::-1], dim=-1), slopes, rtol=0, atol=1e-12)


def keys(s: Tensor) -> Tensor:
    """The kernel with a = -0.75, written out by cases."""
    s = s.abs()
    near, far = 1.25 * s**3 - 2.25 * s**2 + 1, -0.75 * (s**3 - 5 * s**2 + 8 * s - 4)
    return torch.where(s <= 1, near, torch.where(s < 2, far, 0.0))


def by_definition(grid: Tensor) -> Callable[[Tensor], Tensor]:
    """``Σ_k T[k] Π_i w(x_i - k_i)`` over the whole grid, of one place ``[d]``: ``[C]``."""

    def value(x: Tensor) -> Tensor:
        y = grid
        for i in range(grid.dim() - 1):
            weights = keys(x[i] - torch.arange(y.shape[1], dtype=x.dtype))
            y = torch.einsum("ck...,k->c...", y, weights)
        return y

    return value


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_cubic_derivatives_to_second_order(rank: int) -> None:
    grid, inner = normal(0, 2, *SIZES[rank]), torch.tensor(SIZES[rank]).double() - 1
    x = uniform(1, 20, rank) * inner
    function = by_definition(grid)

    def found(*axes: int) -> Tensor:
        order = [axes.count(i) for i in range(rank)]
        return gncompile.interpolate(grid, x, mode="cubic", padding="zeros", order=order)

    torch.testing.assert_close(found(), vmap(function)(x), rtol=0, atol=1e-12)
    slopes = torch.stack([found(i) for i in range(rank)], dim=-1)
    torch.testing.assert_close(slopes, vmap(jacrev(function))(x), rtol=0, atol=1e-12)
    rows = [torch.stack([found(i, j) for j in range(rank)], dim=-1) for i in range(rank)]
    seconds = torch.stack(rows, dim=-2)
    torch.testing.assert_close(seconds, vmap(hessian(function))(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_linear_values_are_those_of_scipy(rank: int) -> None:
    grid, box = normal(0, *SIZES[rank]), [(-1.0, 2.0), (3.0, 1.0), (0.0, 0.5)][:rank]
    low, high = torch.tensor(box).double().T
    x = low + uniform(1, 4, 5, rank) * (high - low)
    axes = [np.linspace(a, b, s) for (a, b), s in zip(box, grid.shape, strict=True)]
    scipys = RegularGridInterpolator(
        [np.sort(axis) for axis in axes],
        np.flip(grid.numpy(), [i for i, (a, b) in enumerate(box) if a > b]),
    )
    found = gncompile.interpolate(grid[None], x, box=box)
    assert found.shape == (4, 1, 5)
    torch.testing.assert_close(found[:, 0], torch.tensor(scipys(x.numpy())), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("mode", "padding"), SETTINGS)
def test_an_order_is_a_derivative_by_the_boxs_coordinates(mode: str, padding: str) -> None:
    grid, box = normal(0, 3, 5, 4), [(-1.0, 1.0), (2.0, 0.0)]
    x = (3 * uniform(1, 6, 2, 2) - 1).requires_grad_()

    def read(*order: int) -> Tensor:
        return gncompile.interpolate(grid, x, mode=mode, padding=padding, box=box, order=order)  # type: ignore[arg-type]

    (slopes,) = torch.autograd.grad(read(0, 0).sum(), x, create_graph=True)
    found = torch.stack([read(1, 0).sum(1), read(0, 1).sum(1)], dim=-1)
    torch.testing.assert_close(found, slopes, rtol=0, atol=1e-12)
    (mixed,) = torch.autograd.grad(slopes[..., 0].sum(), x)
    torch.testing.assert_close(read(1, 1).sum(1), mixed[..., 1], rtol=0, atol=1e-12)


def test_grids_of_one_point_and_grids_that_are_not_contiguous() -> None:
    x = 4 * uniform(0, 9, 2) - 2
    for mode, padding in SETTINGS[1:3] + SETTINGS[4:]:
        one = gncompile.interpolate(normal(0, 2, 1, 1), x, mode=mode, padding=padding)  # type: ignore[arg-type]
        torch.testing.assert_close(one, normal(0, 2, 1, 1)[:, 0, 0].expand(9, 2))
    turned = normal(0, 2, 5, 4).mT
    assert torch.equal(
        gncompile.interpolate(turned, x), gncompile.interpolate(turned.contiguous(), x)
    )


def test_what_is_no_number_stays_so() -> None:
    x = torch.tensor([[torch.nan, 1.0], [1.0, torch.nan], [1.0, 1.0]])
    for mode, padding in SETTINGS:
        y = gncompile.interpolate(torch.ones(2, 3, 3), x, mode=mode, padding=padding)  # type: ignore[arg-type]
        assert y.isnan().tolist() == [[True, True], [True, True], [False, False]]


GRID, PLACES = torch.zeros(1, 3, 4), torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": torch.zeros(3)}, r"a grid of shape \[3\](.|\n)*image\[None\]"),
        ({"grid": torch.zeros(1, 2, 0)}, r"a grid of shape \[1, 2, 0\]"),
        ({"grid": torch.zeros(1, 2, 2, 2, 2)}, r"one to three dimensions"),
        ({"places": torch.zeros(5, 3)}, r"places of shape \[N, 3\] for a grid of 2 dimensions"),
        ({"places": torch.zeros(2)}, r"give them \[N, …, 2\]"),
        ({"mode": "nearest"}, "whose slope is zero wherever it is defined"),
        ({"mode": "bilinear"}, "the mode 'bilinear'(.|\n)*use 'linear' or 'cubic'"),
        ({"padding": "wrap"}, "the padding 'wrap'"),
        ({"order": (1,)}, r"the order \[1\] for a grid of 2 dimensions"),
        ({"order": (0, -1)}, r"the order \[0, -1\]"),
        ({"box": [(0.0, 1.0)]}, r"the box \[\(0.0, 1.0\)\]"),
        ({"box": [(0.0, 1.0), (2.0, 2.0)]}, "a pair of two coordinates"),
    ],
)  # fmt: skip
def test_other_arguments_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        gncompile.interpolate(**{"grid": GRID, "places": PLACES, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
def test_slopes_of_an_image_that_is_nearly_constant_keep_their_digits_in_float32(
    kernel: str,
) -> None:
    """Weights of size 1 that sum to 0: of the points themselves only roundings of 1e-7 would be left."""
    grid, x = 1 + 2.0**-20 * normal(0, 1, 6, 6).float().round(), (5 * uniform(1, 50, 2)).float()

    def slopes(dtype: torch.dtype) -> Tensor:
        return gncompile.interpolate(grid.to(dtype), x.to(dtype), mode=kernel, order=(1, 0))  # type: ignore[arg-type]

    exact = slopes(torch.float64)
    torch.testing.assert_close(
        slopes(torch.float32).double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max())
    )
