"""Gram matrices of the Jacobian's rows, made tile by tile, against the rows written out."""

from __future__ import annotations

import pytest
import torch

from gncompile.runtime.jacobian_rows import TILE, row_gram
from gncompile.runtime.memory import padded_shape

SAMPLES = TILE + 5
"""More than a tile, and no multiple of it."""


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("places", "left", "right"),
    [(1, 9, 8), (2, 40, 41), (3, 2, 3)],  # by pairs of the uses, and of their places; by rows
)
@pytest.mark.parametrize("columns", [1, 3])
def test_a_gram_matrix_is_that_of_the_rows(
    columns: int, places: int, left: int, right: int, scaled: bool, adds: bool
) -> None:
    torch.manual_seed(0)
    double, gram = {"dtype": torch.float64}, (columns, SAMPLES, columns, SAMPLES)
    sides = []
    for _ in range(2):  # uses
        sides.append(torch.randn(columns, SAMPLES, places, left, **double))
        sides.append(torch.randn(SAMPLES, places, right, **double))
    weight = torch.rand(left, right, **double) if scaled else torch.tensor(0.7, **double)
    half = torch.randn(gram, **double)
    before = half + half.permute(2, 3, 0, 1) if adds else None
    out = torch.full(gram, torch.nan, **double)
    row_gram(weight, sides, False, before, out)
    pairs = zip(sides[::2], sides[1::2], strict=True)
    rows = sum(torch.einsum("knta,ntb->knab", *pair) for pair in pairs)
    wanted = torch.einsum("knab,lmab->knlm", rows * weight, rows) / SAMPLES
    wanted = wanted if before is None else wanted + before
    # sums of some hundred products of numbers of size 1
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("columns", [1, 3])
def test_a_bias_is_added_where_rows_are_padded(columns: int, scaled: bool, adds: bool) -> None:
    """Buffers pad their rows where samples are many and no multiple of 16: such a matrix has no flat view."""
    torch.manual_seed(0)
    double, gram = {"dtype": torch.float64}, (columns, SAMPLES, columns, SAMPLES)
    sides = [torch.randn(columns, SAMPLES, places, 9, **double) for places in (1, 2)]  # uses
    weight = torch.rand(9, **double) if scaled else torch.tensor(0.7, **double)
    half = torch.randn(gram, **double)
    before = half + half.permute(2, 3, 0, 1) if adds else None
    padded = torch.full(padded_shape(gram), torch.nan, **double)
    assert padded.shape[-1] > SAMPLES
    out = padded[..., :SAMPLES]
    row_gram(weight, sides, True, before, out)
    rows = sum(side.sum(-2) for side in sides)
    wanted = torch.einsum("kna,lma->knlm", rows * weight, rows) / SAMPLES
    wanted = wanted if before is None else wanted + before
    # sums of some ten products of numbers of size 1
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    assert padded[..., SAMPLES:].isnan().all()
