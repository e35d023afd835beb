"""Moments over a batch against float64, in the interpreter."""

import pytest
import torch
import triton
import triton.language as tl
from comparison import assert_close
from matrices import TOLERANCE, assert_surroundings_untouched, matrix, result

from gncompile.errors import InternalError
from gncompile.triton_kernels.syrk import (
    Settings,
    cross_moment,
    cross_moment_reference,
    syrk,
    syrk_reference,
)
from gncompile.triton_kernels.tiles import triangle_position

ONE = Settings(16, 16, 16)
SPLIT = Settings(16, 16, 16, split=3)


@triton.jit
def positions(rows, columns):
    index = tl.program_id(0)
    row, column = triangle_position(index)
    tl.store(rows + index, row)
    tl.store(columns + index, column)


def test_every_tile_of_a_triangle_has_one_owner():
    rows, columns = torch.empty(2, 210, dtype=torch.int32)
    positions[(210,)](rows, columns)
    expected = torch.tril_indices(20, 20)
    assert torch.equal(torch.stack([rows, columns]).long(), expected)


def extended(a):
    return torch.cat([a.double(), torch.ones(len(a), 1, dtype=torch.float64)], dim=1)


@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize(
    ("samples", "size"), [(1, 1), (17, 16), (63, 15), (130, 17), (16, 64), (65, 33)]
)
def test_sizes(samples, size, homogeneous):
    a = matrix(samples, size)
    out = result(size + homogeneous, size + homogeneous)
    syrk(a, out, alpha=1 / samples, homogeneous=homogeneous, settings=ONE)
    values = extended(a) if homogeneous else a.double()
    assert_close(out, values.mT @ values / samples, TOLERANCE[torch.float32])
    assert torch.equal(out, out.mT)
    assert_surroundings_untouched(out)


@pytest.mark.parametrize("settings", [ONE, SPLIT], ids=["one part", "three parts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_types(dtype, settings):
    a = matrix(130, 33, dtype)
    out = result(34, 34, torch.promote_types(dtype, torch.float32))
    syrk(a, out, homogeneous=True, settings=settings)
    assert_close(out, extended(a).mT @ extended(a), TOLERANCE[dtype])
    assert torch.equal(out, out.mT)


def test_the_reference_of_a_moment_agrees():
    """Rows of zeros beyond the last sample must not become the ones that are appended."""
    a, out = matrix(40, 20), result(21, 21)
    syrk(a, out, alpha=0.025, homogeneous=True, settings=SPLIT)
    expected = torch.empty(21, 21, dtype=torch.float64)
    syrk_reference(a.double(), expected, alpha=0.025, homogeneous=True)
    assert_close(out, expected, TOLERANCE[torch.float32])


def test_runs_are_bitwise_equal():
    a = matrix(130, 20)
    first, second = result(20, 20), result(20, 20)
    syrk(a, first, settings=SPLIT)
    syrk(a, second, settings=SPLIT)
    assert torch.equal(first, second)


def test_views_and_default_settings():
    """A parameter without its bias column, transposed; and settings chosen by shape."""
    a = matrix(20, 41)[:, :-1].mT
    out = result(20, 20)
    syrk(a, out, settings=ONE)
    assert_close(out, a.double().mT @ a.double(), TOLERANCE[torch.float32])
    syrk(a, out)
    assert_close(out, a.double().mT @ a.double(), TOLERANCE[torch.float32])


def test_tiles_that_are_not_square_are_refused():
    with pytest.raises(InternalError, match="square tiles, not 16×32"):
        syrk(matrix(3, 4), result(4, 4), settings=Settings(16, 32, 16))


@pytest.mark.parametrize("settings", [ONE, SPLIT, Settings(16, 32, 16, split=2)])
@pytest.mark.parametrize(("samples", "rows", "columns"), [(1, 17, 1), (70, 1, 33), (65, 33, 31)])
def test_weight_gradients(samples, rows, columns, settings):
    v, x = matrix(samples, rows), matrix(samples, columns)
    out = result(rows, columns + 1)
    cross_moment(v, x, out, alpha=1 / samples, homogeneous=True, settings=settings)
    assert_close(out, v.double().mT @ extended(x) / samples, TOLERANCE[torch.float32])
    assert_surroundings_untouched(out)


def test_the_reference_of_a_cross_moment_agrees():
    v, x, out = (matrix(n, d, torch.float64) for n, d in ((40, 17), (40, 20), (17, 21)))
    expected = torch.empty_like(out)
    options = {"alpha": 1 / 40, "homogeneous": True}
    cross_moment(v, x, out, **options, settings=SPLIT)
    cross_moment_reference(v, x, expected, **options)
    assert_close(out, expected, TOLERANCE[torch.float64])
