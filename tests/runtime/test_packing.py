"""Symmetric matrices as triangles in a bucket, and back."""

from __future__ import annotations

import pytest
import torch

from gncompile.runtime.packing import pack, sent, unpack


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 63, 65])
def test_a_triangle_comes_back_as_it_went(size: int) -> None:
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(size))
    matrix, start = a + a.T, 3
    bucket = torch.full((start + size * (size + 1) // 2 + 2,), float("nan"))
    place = pack(matrix, bucket, start, triangle=True)
    assert len(place) == sent(matrix, triangle=True) == size * (size + 1) // 2
    # Each element of the triangle once, and nothing beyond its place.
    upper = matrix[tuple(torch.triu_indices(size, size))]
    assert torch.equal(place.sort().values, upper.sort().values)
    assert bucket[:start].isnan().all()
    assert bucket[-2:].isnan().all()
    found = torch.full((size, size + 2), float("nan"))[:, :size]  # rows with padding between them
    unpack(bucket, start, found, triangle=True)
    assert torch.equal(found, matrix)


def test_others_go_in_full() -> None:
    matrix, bucket = torch.arange(6.0).reshape(2, 3), torch.zeros(7)
    pack(matrix.T, bucket, 1, triangle=False)
    found = torch.empty(3, 2)
    unpack(bucket, 1, found, triangle=False)
    assert torch.equal(found, matrix.T)
