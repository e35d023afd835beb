"""Index tables as nested loops, and the copies and sums by strided views that they become."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gncompile.emit.strided import Loops, loops_of
from gncompile.runtime import linalg

SHAPES = ((2, 3, 4), (1, 5, 2), (3, 1, 1), (4, 4, 4), (2, 2, 7))


def places(loops: Loops) -> list[tuple[int, int]]:
    """The pairs of places that loops run through."""
    steps = itertools.product(*map(range, loops.sizes))
    return [
        (
            loops.to + sum(i * s for i, s in zip(at, loops.to_strides, strict=True)),
            loops.source + sum(i * s for i, s in zip(at, loops.strides, strict=True)),
        )
        for at in steps
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_permutations_are_copied(shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    index = np.arange(np.prod(shape)).reshape(shape).transpose(order).reshape(-1).tolist()
    loops = loops_of(range(len(index)), index)
    assert loops is not None
    assert places(loops) == list(enumerate(index))
    x = torch.randn(2, 3, len(index) + 3)[..., 1:-2]  # rows longer than what is read
    out = torch.full((2, 3, len(index) + 1), torch.nan)[..., :-1]
    linalg.strided_copy(x, *vars(loops).values(), out=out)
    assert torch.equal(out, x[..., index])


@pytest.mark.parametrize(
    ("shape", "axis"), [(s, axis) for s in SHAPES for axis in range(3) if s[axis] > 1]
)
def test_broadcasts_are_summed(shape: tuple[int, ...], axis: int) -> None:
    rest = tuple(n for k, n in enumerate(shape) if k != axis)
    size = int(np.prod(rest))
    table = np.expand_dims(np.arange(size).reshape(rest), axis)
    to = np.broadcast_to(table, shape).reshape(-1).tolist()
    loops = loops_of(to, range(len(to)))
    assert loops is not None
    assert places(loops) == [(place, k) for k, place in enumerate(to)]
    x = torch.randn(3, len(to)).double()
    out = torch.full((3, size), torch.nan).double()
    linalg.strided_sum(x, *vars(loops).values(), out=out)
    expected = torch.zeros(3, size).double().index_add_(1, torch.tensor(to), x)
    torch.testing.assert_close(out, expected)


def test_what_is_no_loop_is_left_to_an_index() -> None:
    assert loops_of(range(5), [0, 1, 3, 4, 9]) is None
    assert loops_of([4], [7]) == Loops((1,), (0,), (0,), 4, 7)
