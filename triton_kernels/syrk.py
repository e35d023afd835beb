"""Moments over a batch: ``AᵀA``, symmetric, and ``AᵀB``.

A symmetric moment computes tiles on and below the diagonal and stores each also mirrored. Tiles are square:
then exactly one program writes an element.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gncompile.errors import InternalError

from .gemm import item, operand_item
from .language import tl, triton
from .launches import (
    Launch,
    Template,
    arithmetic,
    launch,
    matrix,
    padded_operand,
    require,
    rows_of,
)
from .moments import finish_moment, moment_part, moment_position, sum_parts, workspace_tile
from .patches import View
from .settings import (
    MatrixSettings,
    Precision,
    Shape,
    accumulator,
    matrix_default,
    matrix_space,
    tile_counts,
)
from .tiles import Matrix, Operand

Settings = MatrixSettings


@triton.jit
def moment_kernel(
    a, b, out, workspace, M, N, SAMPLES, alpha: tl.float64,
    SYMMETRIC: tl.constexpr, SPLIT: tl.constexpr, ONES_A: tl.constexpr, ONES_B: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
    VIEW_A: tl.constexpr, VIEW_B: tl.constexpr,
):  # fmt: skip
    """One program a tile and part of the batch; with one part only, it also finishes the tile.

    The last dimension of the grid is that of several moments of one shape.
    """
    index = tl.program_id(0)
    part = tl.program_id(1)
    group = tl.program_id(2)
    row_tile, column_tile = moment_position(index, M, N, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP)
    total = moment_part(
        operand_item(a, group), operand_item(b, group), row_tile, column_tile, SAMPLES,
        part, tl.num_programs(1), ONES_A, ONES_B,
        BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION, VIEW_A, VIEW_B,
    )  # fmt: skip
    if SPLIT:
        tiles = tl.num_programs(0)
        at = group * tiles + index
        tiles *= tl.num_programs(2)
        tl.store(workspace_tile(workspace, part, at, tiles, BLOCK_M, BLOCK_N), total)
    else:
        out = item(out, group)
        finish_moment(total, row_tile, column_tile, M, N, out, alpha, SYMMETRIC, BLOCK_M, BLOCK_N)


@triton.jit
def finish_moment_kernel(
    out, workspace, parts, M, N, alpha: tl.float64, SYMMETRIC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """One program a tile: the parts of its sum, then what a single part would have been finished with."""
    index = tl.program_id(0)
    group = tl.program_id(1)
    row_tile, column_tile = moment_position(index, M, N, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP)
    tiles = tl.num_programs(0)
    at = group * tiles + index
    tiles *= tl.num_programs(1)
    total = sum_parts(workspace, parts, at, tiles, BLOCK_M, BLOCK_N, ACCUMULATOR)
    out = item(out, group)
    finish_moment(total, row_tile, column_tile, M, N, out, alpha, SYMMETRIC, BLOCK_M, BLOCK_N)


@Template
def syrk(
    a: Tensor,
    out: Tensor,
    *,
    alpha: float = 1.0,
    homogeneous: bool = False,
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out = α AᵀA``, symmetric bit by bit; ``1/N`` for α makes a mean.

    Args:
        a: ``[N, d]``, any strides; of more dimensions all but the last are rows.
        out: ``[d, d]``, or ``[d+1, d+1]`` if ``homogeneous``: a 1 is then appended to every row of A.

    Raises InternalError if shapes or settings do not fit.
    """
    return moment_launches(a, None, out, alpha, homogeneous, precision, settings)


@Template
def cross_moment(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    alpha: float = 1.0,
    homogeneous: bool = False,
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out = α Aᵀ [B, 1]``; weight gradients ``(1/N) vᵀ [x, 1]`` are one of these.

    Args:
        a, b: ``[N, d]`` and ``[N, e]``; ``out`` is ``[d, e]``, or ``[d, e+1]`` if ``homogeneous``.

    The rest as in :func:`syrk`.
    """
    return moment_launches(a, b, out, alpha, homogeneous, precision, settings)


def moment_launches(
    a: Tensor,
    b: Tensor | None,
    out: Tensor,
    alpha: float,
    homogeneous: bool,
    precision: Precision,
    settings: Settings | None,
) -> list[Launch]:
    """The launches of :func:`syrk` (b None) and :func:`cross_moment`; if split, the first makes the parts."""
    a, b = rows_of(a), None if b is None else rows_of(b)
    symmetric, right = b is None, (a if b is None else b)
    samples = a.shape[0]
    rows, columns = a.shape[1] + (homogeneous and symmetric), right.shape[1] + homogeneous
    require("b", right, samples, right.shape[1])
    require("out", out, rows, columns)
    return moment_of_sides(
        Side(padded_operand(a.mT)), Side(padded_operand(right.mT)), matrix(out),
        Shape(rows, columns, samples), symmetric=symmetric, homogeneous=homogeneous, alpha=alpha,
        precision=precision, settings=settings,
    )  # fmt: skip


class Side(NamedTuple):
    """An operand ``[outer, samples]`` of a moment, and how it lies in a batch of grids, if it does."""

    operand: Operand
    view: View | None = None


def moment_of_sides(
    a: Side,
    b: Side,
    out: Matrix,
    shape: Shape,
    *,
    symmetric: bool,
    homogeneous: bool,
    alpha: float,
    precision: Precision,
    settings: Settings | None,
) -> list[Launch]:
    """The launches of a moment of ``shape``, or of a batch of them."""
    tensors = a.operand.pointer, b.operand.pointer
    if settings is None:
        how = {"triangle": symmetric, "split": True, "views": b.view is not None}
        settings = matrix_default(shape, tensors[0].dtype, precision, **how)
    if symmetric:
        require_square(settings)
    numbers = arithmetic(tensors, precision)
    tiles = tile_counts(shape._replace(batch=1), settings, symmetric)
    split = settings.split > 1
    finish = {
        "out": out,
        "workspace": workspace(shape.batch * tiles, settings, tensors[0]) if split else None,
        "M": shape.rows,
        "N": shape.columns,
        "alpha": alpha,
        "SYMMETRIC": symmetric,
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
        "GROUP": settings.group,
        "ACCUMULATOR": numbers["ACCUMULATOR"],
    }
    found = [
        launch(
            moment_kernel,
            (tiles, settings.split, shape.batch),
            settings,
            **finish,
            a=a.operand,
            b=b.operand,
            SAMPLES=shape.inner,
            SPLIT=split,
            ONES_A=homogeneous and symmetric,
            ONES_B=homogeneous,
            BLOCK_K=settings.block_k,
            DTYPE=numbers["DTYPE"],
            PRECISION=numbers["PRECISION"],
            VIEW_A=a.view,
            VIEW_B=b.view,
        )
    ]
    if split:
        grid = tiles, shape.batch
        found.append(launch(finish_moment_kernel, grid, settings, **finish, parts=settings.split))
    return found


def workspace(tiles: int, settings: Settings, like: Tensor) -> Tensor:
    """Memory for the parts of ``tiles`` sums."""
    size = settings.split * tiles * settings.block_m * settings.block_n
    return torch.empty(size, dtype=accumulator(like.dtype), device=like.device)


def require_square(settings: Settings) -> None:
    """Raise unless tiles are square: others overlap across the diagonal."""
    if settings.block_m != settings.block_n:
        raise InternalError(
            f"a symmetric product needs square tiles, not {settings.block_m}×{settings.block_n}",
            instead="set block_m = block_n",
        )


def syrk_reference(
    a: Tensor, out: Tensor, *, alpha: float = 1.0, homogeneous: bool = False
) -> None:
    """:func:`syrk` in plain torch."""
    values = _extended(a, homogeneous)
    out.copy_(alpha * (values.mT @ values))


def cross_moment_reference(
    a: Tensor, b: Tensor, out: Tensor, *, alpha: float = 1.0, homogeneous: bool = False
) -> None:
    """:func:`cross_moment` in plain torch."""
    out.copy_(alpha * (a.to(accumulator(a.dtype)).mT @ _extended(b, homogeneous)))


def _extended(x: Tensor, homogeneous: bool) -> Tensor:
    """``[X, 1]``."""
    values = x.to(accumulator(x.dtype))
    return torch.cat([values, values.new_ones(len(x), 1)], dim=1) if homogeneous else values


def syrk_space(shape: Shape, dtype: torch.dtype, precision: Precision) -> tuple[Settings, ...]:
    """Settings of :func:`syrk` worth measuring; the default comes first."""
    return matrix_space(shape, dtype, precision, square=True, split=True)


def cross_space(shape: Shape, dtype: torch.dtype, precision: Precision) -> tuple[Settings, ...]:
    """Settings of :func:`cross_moment` worth measuring; the default comes first."""
    return matrix_space(shape, dtype, precision, split=True)


def syrk_cost(shape: Shape, itemsize: int = 4) -> tuple[int, int]:
    """FLOPs and bytes of :func:`syrk`: half a product, A read once, both triangles written."""
    size, _, samples, _ = shape
    return size * (size + 1) * samples, (samples * size + size * size) * itemsize
