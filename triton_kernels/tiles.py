"""Device helpers shared by the matrix kernels: which tile a program owns, how tiles are read and written.

A matrix product is computed tile by tile, ``C[rows, columns] = Σ_k A[rows, k] B[columns, k]``: both operands
are addressed as ``[outer, inner]``, where *inner* is the dimension summed over. A transposed operand is the
same memory with its two strides exchanged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .language import tl, triton
from .patches import seen
from .random import drawn


class Matrix(NamedTuple):
    """A matrix in device memory: element ``(r, c)`` of item z at ``pointer + r·row + c·column + z·batch``.

    Of a draw, which is nowhere in memory: its state, elements a row, its number, and 0.
    """

    pointer: Any
    row: Any
    column: Any
    batch: Any


class Operand(NamedTuple):
    """One side of a product, ``[outer, inner]``.

    Outer indices below ``readable ≥ size`` may be read. What lies between is padding: it ends up in rows or
    columns of a product that are never stored. A limit divisible by 16 keeps loads vectorised.
    """

    pointer: Any
    outer: Any
    inner: Any
    batch: Any
    readable: Any
    size: Any


# --- which tile ---------------------------------------------------------------------------------------


@triton.jit
def triangle_position(index):
    """Row and column (column ≤ row) of the ``index``-th tile of a lower triangle, counted row by row."""
    row = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root is approximate on the device, so it may be one off on either side.
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)
    return row, index - row * (row + 1) // 2


@triton.jit
def grouped_position(index, row_tiles, column_tiles, GROUP: tl.constexpr):
    """Row and column of a tile in an order that walks ``GROUP`` rows at once, to find tiles of B in L2."""
    per_group = GROUP * column_tiles
    first = (index // per_group) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    return first + (index % per_group) % height, (index % per_group) // height


# --- reading ------------------------------------------------------------------------------------------


@triton.jit
def offsets(index, stride):
    """Element offsets in 64 bits: a batch of activations can have more than 2³¹ elements."""
    return index.to(tl.int64) * stride


@triton.jit
def in_matrix(rows, columns, PLACES: tl.constexpr):
    """Row and column of a tile's elements in a matrix, to be broadcast.

    That of a batch of grids, ``[B, C·PLACES]``, whose rows are the samples, if a tile's rows are places, one
    sample's after the other, and its columns channels.
    """
    if PLACES is None:
        at = rows[:, None], columns[None, :]
    else:
        at = (rows // PLACES)[:, None], columns[None, :] * PLACES + (rows % PLACES)[:, None]
    return at


@triton.jit
def load_tile(
    matrix, rows, columns, row_mask, column_mask, KIND: tl.constexpr, DTYPE: tl.constexpr,
    PLACES: tl.constexpr = None,
):  # fmt: skip
    """A tile of a matrix, converted to ``DTYPE`` and zero where masked, as far as it is not constant.

    ``KIND`` says how the matrix is broadcast: ``full``, ``row`` [N], ``column`` [M, 1] or ``scalar``; or of
    which distribution a draw is, whose tile has numbers everywhere. ``PLACES`` as in :func:`in_matrix`.
    """
    pointer, row, column, _ = matrix  # by place: Triton 3.6 forgets names inside nested tuples
    r, c = in_matrix(rows, columns, PLACES)
    mask = row_mask[:, None] & column_mask[None, :]
    if KIND == "scalar":
        tile = tl.load(pointer)
    elif KIND == "row":
        if PLACES is None:
            mask = column_mask[None, :]
        tile = tl.load(pointer + offsets(c, column), mask=mask, other=0.0)
    elif KIND == "column":
        tile = tl.load(pointer + offsets(r, row), mask=row_mask[:, None], other=0.0)
    elif KIND == "uniform" or KIND == "normal" or KIND == "sign":
        tile = drawn(pointer, column, offsets(r, row) + c, KIND, DTYPE)
    else:
        at = offsets(r, row) + offsets(c, column)
        tile = tl.load(pointer + at, mask=mask, other=0.0)
    return tile.to(DTYPE)


@triton.jit
def load_tiles(
    inputs, rows, columns, row_mask, column_mask, KINDS: tl.constexpr, DTYPE: tl.constexpr,
    PLACES: tl.constexpr = None,
):  # fmt: skip
    """:func:`load_tile` of each input of a generated function."""
    tiles = ()
    for i in tl.static_range(len(KINDS)):
        tile = load_tile(
            inputs[i], rows, columns, row_mask, column_mask,
            tl.constexpr(KINDS[i]),  # a bare string is no argument in Triton 3.6
            DTYPE, PLACES,
        )  # fmt: skip
        tiles = tiles + (tile,)  # type: ignore[assignment]
    return tiles


@triton.jit
def operand_tile(
    operand, outer, inner, end, factors, ONES: tl.constexpr, MASKED: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, VIEW: tl.constexpr = None,
):  # fmt: skip
    """A tile ``[outer, inner]`` of an operand, zero from inner index ``end`` on.

    ``factors`` are a row along *inner* that it is multiplied with, or None. ``ONES`` appends a column of ones
    at outer index ``size``; ``MASKED`` says that ``end`` may be reached; ``VIEW`` that the operand is what
    windows see in a batch of grids.
    """
    pointer, outer_stride, inner_stride, _, readable, size = operand
    outer_mask = outer < readable
    inner_mask = inner < end
    if MASKED:
        mask = outer_mask[:, None] & inner_mask[None, :]
    else:
        mask = outer_mask[:, None]
    if VIEW is None:
        at = offsets(outer, outer_stride)[:, None] + offsets(inner, inner_stride)[None, :]
    else:
        at, mask = seen(outer_stride, inner_stride, outer[:, None], inner[None, :], mask, VIEW)
    tile = tl.load(pointer + at, mask=mask, other=0.0)
    if factors is not None:
        row = load_tile(factors, outer, inner, outer_mask, inner_mask, "row", ACCUMULATOR)
        tile = tile.to(ACCUMULATOR) * row
    tile = tile.to(DTYPE)
    if ONES:
        tile = tl.where((outer == size)[:, None], 1.0, tile).to(DTYPE)
        if MASKED:
            tile = tl.where(inner_mask[None, :], tile, 0.0).to(DTYPE)
    return tile


@triton.jit
def multiply_step(
    product, a, b, rows, columns, inner, end, factors, ONES_A: tl.constexpr, ONES_B: tl.constexpr,
    MASKED: tl.constexpr, DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
    VIEW_A: tl.constexpr = None, VIEW_B: tl.constexpr = None,
):  # fmt: skip
    """Add the products of one block of inner indices."""
    a_tile = operand_tile(a, rows, inner, end, None, ONES_A, MASKED, DTYPE, ACCUMULATOR, VIEW_A)
    b_tile = operand_tile(
        b, columns, inner, end, factors, ONES_B, MASKED, DTYPE, ACCUMULATOR, VIEW_B
    )
    # Adding inside the instruction, not after it, is also what Blackwell compiles correctly.
    return tl.dot(
        a_tile, tl.trans(b_tile), product, input_precision=PRECISION, out_dtype=ACCUMULATOR
    )


@triton.jit
def multiply_tile(
    a, b, rows, columns, begin, end, factors, ONES_A: tl.constexpr, ONES_B: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
    VIEW_A: tl.constexpr = None, VIEW_B: tl.constexpr = None,
):  # fmt: skip
    """``Σ_{begin ≤ k < end} A[rows, k] B[columns, k] factors[k]``; without factors, None, the product alone.

    Only the last, partial block is masked along k, so that an odd size costs one slow block, not all.
    """
    product = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    whole = begin + (end - begin) // BLOCK_K * BLOCK_K
    for first in range(begin, whole, BLOCK_K):
        product = multiply_step(
            product, a, b, rows, columns, first + tl.arange(0, BLOCK_K), end, factors,
            ONES_A, ONES_B, False, DTYPE, ACCUMULATOR, PRECISION, VIEW_A, VIEW_B,
        )  # fmt: skip
    if whole < end:
        product = multiply_step(
            product, a, b, rows, columns, whole + tl.arange(0, BLOCK_K), end, factors,
            ONES_A, ONES_B, True, DTYPE, ACCUMULATOR, PRECISION, VIEW_A, VIEW_B,
        )  # fmt: skip
    return product


@triton.jit
def scaled(tile, factor):
    """An epilogue: a tile times a diagonal matrix or a scalar."""
    return (tile * factor,)


# --- writing ------------------------------------------------------------------------------------------


@triton.jit
def number(value, DTYPE: tl.constexpr):
    """A number, which arrives as float64, as a scalar of ``DTYPE``: it would widen what it multiplies."""
    return tl.full((), value, DTYPE)


@triton.jit
def store_tile(matrix, value, rows, columns, row_mask, column_mask, PLACES: tl.constexpr = None):
    """Write a tile; values are rounded to the type stored there."""
    pointer, row, column, _ = matrix
    r, c = in_matrix(rows, columns, PLACES)
    at = offsets(r, row) + offsets(c, column)
    tl.store(pointer + at, value, mask=row_mask[:, None] & column_mask[None, :])


@triton.jit
def store_symmetric(matrix, value, rows, columns, row_mask, column_mask, diagonal):
    """Write a tile of the lower triangle and its mirror image, so that the matrix is symmetric bit by bit."""
    if diagonal:
        mirrored = tl.where(rows[:, None] >= columns[None, :], value, tl.trans(value))
        store_tile(matrix, mirrored, rows, columns, row_mask, column_mask)
    else:
        store_tile(matrix, value, rows, columns, row_mask, column_mask)
        store_tile(matrix, tl.trans(value), columns, rows, column_mask, row_mask)


@triton.jit
def store_results(
    value, out, outputs, inputs, rows, columns, row_mask, column_mask,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, RESULTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PLACES: tl.constexpr = None,
):  # fmt: skip
    """Apply the epilogue to a tile: its first result goes to ``out``, the next ``RESULTS`` to ``outputs``."""
    if EPILOGUE is None:
        store_tile(out, value, rows, columns, row_mask, column_mask, PLACES)
    else:
        tiles = load_tiles(inputs, rows, columns, row_mask, column_mask, KINDS, value.dtype, PLACES)
        results = EPILOGUE(value, *tiles)
        first = tl.broadcast_to(results[0], (BLOCK_M, BLOCK_N))
        store_tile(out, first, rows, columns, row_mask, column_mask, PLACES)
        for i in tl.static_range(RESULTS):
            result = tl.broadcast_to(results[i + 1], (BLOCK_M, BLOCK_N))
            store_tile(outputs[i], result, rows, columns, row_mask, column_mask, PLACES)
