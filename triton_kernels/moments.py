"""Device functions of sums over a batch, shared by moments, their groups and the KFRA step.

The sum over N samples is split between programs where the result is small: each writes its part to a
workspace, and a second kernel adds the parts in order. So results are the same in every run.
"""

from __future__ import annotations

from .language import tl, triton
from .tiles import (
    combine,
    grouped_position,
    multiply_tile,
    store_results,
    store_symmetric,
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
    a, a_inputs, b, b_inputs, row_tile, column_tile, samples, part, parts,
    PROLOGUE_A: tl.constexpr, KINDS_A: tl.constexpr, ONES_A: tl.constexpr,
    PROLOGUE_B: tl.constexpr, KINDS_B: tl.constexpr, ONES_B: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sum of one tile over the ``part``-th of ``parts`` shares of the batch, each of whole blocks."""
    share = tl.cdiv(tl.cdiv(samples, parts), BLOCK_K) * BLOCK_K
    begin = tl.minimum(part * share, samples)
    return multiply_tile(
        a, a_inputs, b, b_inputs,
        row_tile * BLOCK_M + tl.arange(0, BLOCK_M),
        column_tile * BLOCK_N + tl.arange(0, BLOCK_N),
        begin, tl.minimum(begin + share, samples),
        PROLOGUE_A, KINDS_A, ONES_A, PROLOGUE_B, KINDS_B, ONES_B,
        BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
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
    total, row_tile, column_tile, M, N, out, outputs, inputs,
    alpha, alpha_tensor, add, beta, beta_tensor, AVERAGE: tl.constexpr, SYMMETRIC: tl.constexpr,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, STORED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scale a tile, average it with what was stored before, apply the epilogue, and store it."""
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < M
    column_mask = columns < N
    value = combine(
        total, rows, columns, row_mask, column_mask,
        alpha, alpha_tensor, None, add, beta, beta_tensor, AVERAGE,
    )  # fmt: skip
    if SYMMETRIC:
        store_symmetric(out, value, rows, columns, row_mask, column_mask, row_tile == column_tile)
    else:
        store_results(
            value, out, outputs, inputs, rows, columns, row_mask, column_mask,
            EPILOGUE, KINDS, STORED, BLOCK_M, BLOCK_N,
        )  # fmt: skip
