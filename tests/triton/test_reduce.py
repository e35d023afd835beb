"""Sums, dot products and softmax against torch in float64."""

import math

import pytest
import torch
from matrices import assert_surroundings_untouched, matrix, result

from gncompile.errors import InternalError
from gncompile.triton_kernels import accurate
from gncompile.triton_kernels.language import tl, triton  # noqa: F401 (the interpreter wants tl here)
from gncompile.triton_kernels.pointwise_groups import Problem
from gncompile.triton_kernels.reduce import (
    ReduceSettings,
    cost,
    grouped_reduce,
    itself,
    plan_sums,
    product,
    reduce,
    reduce_reference,
    space,
)
from gncompile.triton_kernels.softmax import softmax, softmax_reference

SMALL = ReduceSettings(8, 16, programs=6)
SIZES = [(1, 1), (17, 63), (65, 16), (130, 5), (1, 130)]


@triton.jit
def cross_entropy(z, y):
    return accurate.softplus(z) - y * z, accurate.sigmoid(z) - y


def cross_entropy_reference(z, y):
    return torch.nn.functional.softplus(z) - y * z, z.sigmoid() - y


def tolerance(dtype):
    """The function's own rounding, a few eps; sums are exact to float64."""
    return {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_a_loss_and_its_gradient_in_one_pass(rows, columns, dtype):
    z, y = matrix(rows, columns, dtype), matrix(rows, columns, dtype)
    loss, gradient = torch.tensor(torch.nan, dtype=dtype), result(rows, columns, dtype)
    reduce(cross_entropy, (z, y), loss, outputs=(gradient,), alpha=1 / rows, settings=SMALL)
    summand, slope = cross_entropy_reference(z.double(), y.double())
    # Summands have both signs: their rounding counts, not the sum's.
    atol = 8 * torch.finfo(dtype).eps * (summand.abs().sum().item() / rows + 1)
    torch.testing.assert_close(loss.double(), summand.sum() / rows, rtol=0, atol=atol)
    torch.testing.assert_close(gradient.double(), slope, **tolerance(dtype))
    assert_surroundings_untouched(gradient)


@pytest.mark.parametrize("over", ["all", "rows", "columns"])
@pytest.mark.parametrize(("rows", "columns"), [(17, 63), (130, 5), (3, 130)])
def test_sums_over_dimensions(rows, columns, over):
    a, row = matrix(rows, columns), matrix(1, columns)[0]
    shape = {"all": (), "rows": (columns,), "columns": (rows, 1)}[over]
    for options in ({}, {"alpha": 1 / rows}):
        out, expected = torch.ones(shape), torch.ones(shape)
        reduce(product, (a, row), out, over=over, settings=SMALL, **options)
        reduce_reference(lambda u, v: (u * v,), (a, row), expected, over=over, **options)
        # Products are rounded to float32 before they are added.
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-5)


def test_sums_are_wider_than_their_terms():
    a = torch.tensor([1e8, 1.0, -1e8, 1.0] * 50).reshape(2, 100)
    out = torch.empty(())
    reduce(itself, (a,), out, settings=SMALL)
    assert out == 100


def test_sums_are_the_same_in_every_run():
    a = torch.randn(130, 33)
    results = []
    for _ in range(2):
        out = torch.full((), torch.nan, dtype=torch.float64)
        reduce(itself, (a,), out, settings=SMALL)
        results.append(out.item())
    assert results[0] == results[1]
    assert results[0] == pytest.approx(math.fsum(a.flatten().tolist()), rel=1e-13)


def test_dot_products_of_many_pairs():
    sizes = [(17, 30), (65,), (33, 5), (1, 1), (16, 32)]
    pairs = [(torch.randn(size), torch.randn(size)) for size in sizes]
    slots = [2, 0, 2, 4, 0]
    expected = torch.zeros(5, dtype=torch.float64)
    for (a, b), slot in zip(pairs, slots, strict=True):
        expected[slot] += (a.double() * b.double()).sum()
    group = plan_sums([Problem(pair, slot=s) for pair, s in zip(pairs, slots, strict=True)], SMALL)
    out = torch.full((5,), torch.nan)
    grouped_reduce(product, group, out)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-5)
    grouped_reduce(product, group, out, alpha=2.0)
    torch.testing.assert_close(out.double(), 2 * expected, rtol=1e-6, atol=1e-5)
    with pytest.raises(InternalError, match="one element a slot"):
        grouped_reduce(product, group, torch.empty(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 10), (9, 65)])
def test_softmax(rows, columns, dtype):
    x = matrix(rows, columns, dtype).mul_(40)
    x[0, 0] = 800  # e^800 is infinite in both types
    out, log_sum = result(rows, columns, dtype), torch.full((rows, 1), torch.nan, dtype=dtype)
    expected, expected_log = torch.empty_like(x), torch.empty_like(log_sum)
    softmax(x, out=out, log_sum=log_sum, settings=SMALL)
    softmax_reference(x.double(), out=expected, log_sum=expected_log)
    # The difference to the row's largest entry, up to 900, is rounded before it is exponentiated.
    torch.testing.assert_close(out, expected, rtol=900 * torch.finfo(dtype).eps, atol=1e-30)
    torch.testing.assert_close(log_sum, expected_log, **tolerance(dtype))
    assert_surroundings_untouched(out)


def test_softmax_of_excluded_classes():
    x = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf] * 3, [torch.nan, 0.0, 1.0]])
    out, log_sum = torch.empty_like(x), torch.empty(3)
    softmax(x, out=out, log_sum=log_sum)
    torch.testing.assert_close(out, torch.softmax(x, 1), equal_nan=True)
    torch.testing.assert_close(log_sum, torch.logsumexp(x, 1), equal_nan=True)


def test_sizes_are_checked():
    with pytest.raises(InternalError, match="sum over rows has another size"):
        reduce(itself, (torch.ones(3, 4),), torch.empty(3), over="rows")
    with pytest.raises(InternalError, match="only matrices with elements"):
        reduce(itself, (torch.ones(0, 4),), torch.empty(()))


def test_cost_and_space():
    assert cost((torch.ones(10, 20), torch.ones(20))) == (400, 880)
    tiles = space(1000, 30)
    assert len(set(tiles)) == len(tiles) > 4
