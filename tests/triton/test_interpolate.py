"""Grids read between their points, against torch."""

import itertools

import pytest
import torch
from matrices import assert_surroundings_untouched, matrix, result

import gncompile
from gncompile.functions.interpolate import Interpolant, interpolated, taps
from gncompile.triton_kernels.elementwise import ElementwiseSettings
from gncompile.triton_kernels.interpolate import interpolate

SIZES = {1: (6,), 2: (5, 7), 3: (4, 1, 3)}
ORDERS = {1: [(0,), (1,)], 2: [(0, 0), (1, 0), (1, 1)], 3: [(0, 0, 0), (0, 0, 1)]}
CASES = [
    (rank, order, *how)
    for rank in (1, 2)
    for order in ORDERS[rank]
    for how in itertools.product(("linear", "cubic"), ("zeros", "border", "reflection"))
]
SMALL = ElementwiseSettings(8, 16)


def read(rank, order, kernel, padding, corners=True, dtype=torch.float64, rows=17, per_channel=3):
    torch.manual_seed(0)
    grid = torch.randn(*SIZES[rank], 2, dtype=dtype).movedim(-1, 0)  # not contiguous
    # halves, so that grid points and edges are met: there slopes are chosen
    places = [(matrix(rows, 2 * per_channel, dtype) * 8).round_().div_(2) for _ in range(rank)]
    places[0][0, :2] = torch.nan
    out = result(rows, 2 * per_channel, dtype)
    weights = tuple(taps(kernel, o) for o in order)
    interpolate(grid, places, out, weights, padding, order, corners, settings=SMALL)
    of = Interpolant(SIZES[rank], kernel, padding, corners, order)
    wide = [x.double().unflatten(1, (2, -1)) for x in places]
    expected = interpolated(of, grid.double(), wide).flatten(1)
    # sums of at most 64 terms of size one, times slopes of the kernel
    atol = 256 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol, equal_nan=True)
    assert_surroundings_untouched(out)


@pytest.mark.parametrize(("rank", "order", "kernel", "padding"), CASES)
def test_values_and_slopes(rank, order, kernel, padding):
    read(rank, order, kernel, padding)


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
@pytest.mark.parametrize("order", ORDERS[3])
def test_volumes(order, kernel):
    read(3, order, kernel, "reflection", rows=3, per_channel=1)


@pytest.mark.parametrize("order", ORDERS[2])
@pytest.mark.parametrize("kernel", ["linear", "cubic"])
def test_reflection_beyond_the_points_and_float32(order, kernel):
    read(2, order, kernel, "reflection", corners=False)
    read(2, order, kernel, "zeros", dtype=torch.float32, rows=1, per_channel=65)


class Reads(torch.nn.Module):
    """A layer gives the places of an image of two channels, a layer reads what is there."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(3, 6), torch.nn.Linear(6, 2)
        self.register_buffer("image", torch.randn(2, 4, 5).mT)  # not contiguous

    def forward(self, x):
        places = 2 + self.up(x).unflatten(1, (3, 2))
        return self.down(gncompile.interpolate(self.image, places, mode="cubic").flatten(1))


def test_a_step_reads_images_by_kernels():
    x, y = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    model = Reads().double()
    assert "interpolate.launches" in gncompile.compile(model, "mse", x, backend="triton").source
    for method in ("kfra", "kflr"):
        got, expected = (
            gncompile.curvature(model, "mse", x, y, method=method, backend=backend)
            for backend in ("triton", "reference")
        )
        for name, factors in expected.items():
            torch.testing.assert_close(got[name].output, factors.output, rtol=1e-12, atol=1e-12)
