"""The elementwise template, alone and grouped, against torch on NaN-filled outputs in NaN-filled buffers."""

import pytest
import torch
from matrices import assert_surroundings_untouched, matrix, result

from gncompile.errors import InternalError
from gncompile.triton_kernels import elementwise as template
from gncompile.triton_kernels.elementwise import (
    ElementwiseSettings,
    elementwise,
    elementwise_reference,
    grouped_elementwise,
    plan_elementwise_group,
)
from gncompile.triton_kernels.language import tl, triton
from gncompile.triton_kernels.pointwise_groups import Problem

SMALL = ElementwiseSettings(8, 32)
SIZES = [(1, 1), (16, 17), (17, 63), (65, 16), (1, 130), (130, 1)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@triton.jit
def mixed(full, row, column, scalar):
    return full * row + column * scalar, tl.abs(full)


def mixed_reference(full, row, column, scalar):
    return full * row + column * scalar, full.abs()


@triton.jit
def step(parameter, direction, size):
    return (parameter + size * direction,)


def tolerance(dtype):
    """One rounding of a product, one of a sum of two, and that of the result."""
    return {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_every_kind_of_input(rows, columns, dtype):
    full, column = matrix(rows, columns, dtype), matrix(rows, 1, dtype)
    row, scalar = matrix(1, columns, dtype)[0], torch.tensor(1.5, dtype=dtype)
    inputs = (full, row, column, scalar)
    outputs = [result(rows, columns, dtype) for _ in range(2)]
    expected = [torch.empty(rows, columns, dtype=torch.float64) for _ in range(2)]
    elementwise_reference(mixed_reference, [t.double() for t in inputs], expected)
    elementwise(mixed, inputs, outputs, settings=SMALL)
    for got, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, **tolerance(dtype))
        assert_surroundings_untouched(got)


def test_the_default_tile_covers_the_matrix():
    full = matrix(130, 65)
    out = result(130, 65)
    elementwise(step, (full, full, torch.tensor(2.0)), (out,))
    torch.testing.assert_close(out, 3 * full)


@pytest.mark.parametrize("shape", [(), (5,), (3, 5, 7)])
def test_other_dimensions(shape):
    parameter, direction = torch.randn(shape), torch.randn(shape)
    out = torch.full(shape, torch.nan)
    elementwise(step, (parameter, direction, torch.tensor(0.5)), (out,), settings=SMALL)
    torch.testing.assert_close(out, parameter + 0.5 * direction)


def test_a_matrix_is_shared_by_a_batch():
    columns, slopes = torch.randn(4, 9, 5), torch.randn(9, 5)
    out = torch.full((4, 9, 5), torch.nan)
    elementwise(step, (columns, slopes, torch.tensor(2.0)), (out,), settings=SMALL)
    torch.testing.assert_close(out, columns + 2 * slopes)


def test_views_and_transposes():
    weights = matrix(17, 20)
    given = matrix(19, 17)
    expected = weights[:, :-1] + 3 * given.T
    bias = weights[:, -1].clone()
    elementwise(step, (weights[:, :-1], given.T, torch.tensor(3.0)), (weights[:, :-1],))
    torch.testing.assert_close(weights[:, :-1], expected)
    assert torch.equal(weights[:, -1], bias)


def test_nothing_is_launched_for_no_elements():
    empty = torch.empty(0, 3)
    assert elementwise.launches(step, (empty, empty, torch.tensor(1.0)), (empty,)) == []


def test_outputs_of_different_shapes_are_refused():
    with pytest.raises(InternalError, match="differ in shape"):
        elementwise(mixed, (torch.ones(2, 3),), (torch.ones(2, 3), torch.ones(3, 2)))
    with pytest.raises(InternalError, match="fits no tile"):
        elementwise(step, (torch.ones(2, 3), torch.ones(4), torch.ones(())), (torch.ones(2, 3),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_updates_parameters_in_place(dtype):
    shapes = [(17, 20), (1, 1), (65, 16), (16, 64)]
    parameters = [matrix(*shape, dtype) for shape in shapes] + [torch.randn(63, dtype=dtype)]
    directions = [torch.randn_like(parameter) for parameter in parameters]
    size = torch.tensor(0.25, dtype=dtype)
    expected = [p + 0.25 * d for p, d in zip(parameters, directions, strict=True)]
    group = plan_elementwise_group(
        [Problem((p, d, size), (p,)) for p, d in zip(parameters, directions, strict=True)], SMALL
    )
    (launch,) = grouped_elementwise.launches(step, group)
    launch.run()
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter, wanted, **tolerance(dtype))
    for parameter in parameters[:4]:
        assert_surroundings_untouched(parameter)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_group_of_whole_vectors_and_one_of_columns(transposed):
    a, b = torch.randn(32, 48), torch.randn(16, 32)
    pairs = [(t.T if transposed else t) for t in (a, b)]
    expected = [3 * t for t in pairs]
    group = plan_elementwise_group([Problem((t, t, torch.tensor(2.0)), (t,)) for t in pairs])
    assert group.whole
    grouped_elementwise(step, group)
    for got, wanted in zip(pairs, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_group_is_alike():
    a, b = torch.ones(3, 4), torch.ones(4)
    with pytest.raises(InternalError, match="alike in number and kinds"):
        plan_elementwise_group([Problem((a, b), (a,)), Problem((a, a), (a,))])
    with pytest.raises(InternalError, match="matrices of one shape"):
        plan_elementwise_group([Problem((torch.ones(2, 3, 4),), (torch.ones(2, 3, 4),))])
    with pytest.raises(InternalError, match="mixes the types"):
        plan_elementwise_group([Problem((a,), (a,)), Problem((a.double(),), (a.double(),))])


def test_cost_and_space():
    a = torch.ones(10, 20)
    assert template.cost((a, a[0]), (a,)) == (200, 4 * (200 + 20 + 200))
    tiles = template.space(1000, 300)
    assert len(set(tiles)) == len(tiles) > 4
    assert all(tile.block_m * tile.block_n <= 4096 for tile in tiles)
