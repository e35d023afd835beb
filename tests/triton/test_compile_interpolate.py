"""Ahead-of-time tier: grids read between their points, as each architecture would run that."""

import pytest
import torch

from gncompile.functions.interpolate import taps
from gncompile.triton_kernels.interpolate import interpolate
from gncompile.triton_kernels.resources import resources

CASES = [
    ((480, 640), "cubic", "zeros", (0, 1)),
    ((480, 640), "linear", "reflection", (1, 0)),
    ((64, 64, 64), "cubic", "border", (0, 0, 0)),
    ((100,), "cubic", "reflection", (2,)),
]


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "kernel", "padding", "order"), CASES)
def test_nothing_spills(size, kernel, padding, order, dtype, capability):
    places = [torch.ones(1000, 300, dtype=dtype) for _ in size]
    out, grid = torch.ones(1000, 300, dtype=dtype), torch.ones(3, *size, dtype=dtype)
    (launch,) = interpolate.launches(
        grid, places, out, tuple(taps(kernel, o) for o in order), padding, order
    )
    used = resources(launch, capability)
    assert used.spilled == 0
    assert not used.is_trap
