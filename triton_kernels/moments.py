"""Device functions of sums over a batch, shared by moments, their groups and the KFRA step.

The sum over N samples is split between programs where the result is small: each writes its part to a
workspace, and a second kernel adds the parts in order. So results are the same in every run.
"""

from __future__ import annotations

from .language import tl, triton
from .tiles import (
    grouped_position,
    multiply_tile,
    number,
    store_symmetric,
    store_tile,
    triangle_position,
)


@triton.jit
def moment_position(
    index, M, N, SYMMETRIC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Row and column of tile ``index``: of the lower triangle, or of the whole matrix."""
    if SYMMETRIC:
        row_tile, column_tile = triangle_position(index)
    else:
        row_tile, column_tile = grouped_position(
            index, tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP
        )
    return row_tile, column_tile


@triton.jit
def moment_part(
    a, b, row_tile, column_tile, samples, part, parts, ONES_A: tl.constexpr, ONES_B: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
    VIEW_A: tl.constexpr = None, VIEW_B: tl.constexpr = None,
):  # fmt: skip
    """The sum of one tile over the ``part``-th of ``parts`` shares of the batch, each of whole blocks."""
    share = tl.cdiv(tl.cdiv(samples, parts), BLOCK_K) * BLOCK_K
    begin = tl.minimum(part * share, samples)
    return multiply_tile(
        a, b,
        row_tile * BLOCK_M + tl.arange(0, BLOCK_M),
        column_tile * BLOCK_N + tl.arange(0, BLOCK_N),
        begin, tl.minimum(begin + share, samples), None, ONES_A, ONES_B,
        BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION, VIEW_A, VIEW_B,
    )  # fmt: skip


@triton.jit
def workspace_tile(workspace, part, index, tiles, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Pointers to the part of a sum that program ``(index, part)`` computes."""
    first = (tiles.to(tl.int64) * part + index) * (BLOCK_M * BLOCK_N)
    inside = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    return workspace + first + inside


@triton.jit
def sum_parts(
    workspace, parts, index, tiles,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """The parts of a tile, added in order."""
    total = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    for part in range(parts):
        total += tl.load(workspace_tile(workspace, part, index, tiles, BLOCK_M, BLOCK_N))
    return total


@triton.jit
def finish_moment(
    total, row_tile, column_tile, M, N, out, alpha, SYMMETRIC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store ``alpha`` times a tile, of a symmetric matrix mirrored too."""
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < M
    column_mask = columns < N
    value = total * number(alpha, total.dtype)
    if SYMMETRIC:
        store_symmetric(out, value, rows, columns, row_mask, column_mask, row_tile == column_tile)
    else:
        store_tile(out, value, rows, columns, row_mask, column_mask)
