"""One step of the averaged Gauss-Newton recursion (KFRA): ``out = (Wᵀ G W) ⊙ E[b bᵀ]``.

G is the block at a layer's pre-activations, W its weights, b the slopes of the transfer function below, one
row a sample. Both products are formed tile by tile in one kernel, so that neither is stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .gemm import blocks, gemm
from .language import tl, triton
from .launches import (
    Launch,
    Template,
    arithmetic,
    launch,
    matrix,
    padded_empty,
    padded_operand,
    require,
)
from .moments import finish_moment, sum_parts
from .settings import (
    MatrixSettings,
    Precision,
    Shape,
    accumulator,
    matrix_default,
    matrix_space,
    tile_counts,
)
from .syrk import moment_launches, require_square
from .tiles import multiply_tile, number, triangle_position

Settings = MatrixSettings


@triton.jit
def congruence_kernel(
    w, y, b, out, g, factors, SIZE, INNER, SAMPLES, mean: tl.float64, workspace, parts,
    SLOPES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, SLOPE_DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile: ``WᵀY`` there, times the mean of ``b bᵀ`` there."""
    index = tl.program_id(0)
    row_tile, column_tile = triangle_position(index)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    value = multiply_tile(
        w, y, rows, columns, 0, INNER, factors, False, False,
        BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
    )  # fmt: skip
    if SLOPES == "here":
        value *= number(mean, ACCUMULATOR) * multiply_tile(
            b, b, rows, columns, 0, SAMPLES, None, False, False,
            BLOCK_M, BLOCK_N, BLOCK_K, SLOPE_DTYPE, ACCUMULATOR, PRECISION,
        )  # fmt: skip
    elif SLOPES == "parts":
        tiles = tl.num_programs(0)
        moment = sum_parts(workspace, parts, index, tiles, BLOCK_M, BLOCK_N, ACCUMULATOR)
        value *= number(mean, ACCUMULATOR) * moment
    if g is not None:
        value *= tl.load(g).to(ACCUMULATOR)
    finish_moment(value, row_tile, column_tile, SIZE, SIZE, out, 1.0, True, BLOCK_M, BLOCK_N)


@Template
def congruence(
    w: Tensor,
    g: Tensor,
    b: Tensor | None,
    out: Tensor,
    *,
    scratch: Tensor | None = None,
    precision: Precision = "highest",
    settings: Settings | None = None,
    product_settings: Settings | None = None,
) -> list[Launch]:
    """``out = (Wᵀ G W) ⊙ (1/N) Σ_n b_n b_nᵀ``, symmetric bit by bit.

    Args:
        w: W ``[d, e]``; g: G, symmetric, as a scalar ``[]``, a diagonal ``[d]`` or full ``[d, d]``.
        b: the slopes ``[N, e]``. None: the product of matrices alone.
        out: ``[e, e]``; no alias of an input.
        scratch: ``[d, e]`` for ``G W``, if G is full; made here if not given.
        precision: of float32 products.
        product_settings: those of ``G W``.

    Raises InternalError if shapes or settings do not fit.
    """
    inner, size = w.shape
    require("out", out, size, size)
    samples = 0 if b is None else b.shape[0]
    shape = Shape(size, size, samples)
    settings = settings or default_settings(shape, w.dtype, precision)
    require_square(settings)
    found, right = [], w
    if g.dim() == 2:
        right = padded_empty(len(g), size, w) if scratch is None else scratch
        found += gemm.launches(g, w, right, precision=precision, settings=product_settings)
    slopes: dict[str, Any] = dict.fromkeys(("b", "SLOPES", "SLOPE_DTYPE", "workspace"))
    if b is not None:
        require("b", b, samples, size)
        slopes["SLOPE_DTYPE"] = arithmetic([b], precision)["DTYPE"]
        if settings.split > 1:
            parts = moment_launches(b, None, out, 1.0, False, precision, settings)[0]
            found.append(parts)
            slopes |= {"SLOPES": "parts", "workspace": parts.arguments["workspace"]}
        else:
            slopes |= {"SLOPES": "here", "b": padded_operand(b.mT)}
    found.append(
        launch(
            congruence_kernel,
            (tile_counts(shape, settings, triangle=True),),
            settings,
            w=padded_operand(w.mT),
            y=padded_operand(right.mT),
            out=matrix(out),
            g=g if g.dim() == 0 else None,
            factors=matrix(g) if g.dim() == 1 else None,
            SIZE=size,
            INNER=inner,
            SAMPLES=samples,
            mean=1 / max(samples, 1),
            parts=settings.split,
            **slopes,
            **blocks(settings),
            **arithmetic([w, right], precision),
        )
    )
    return found


def congruence_reference(w: Tensor, g: Tensor, b: Tensor | None, out: Tensor) -> None:
    """:func:`congruence` in plain torch."""
    wide = accumulator(w.dtype)
    left, g = w.to(wide), g.to(wide)
    value = left.mT @ (g @ left if g.dim() == 2 else (g[:, None] if g.dim() else g) * left)
    if b is not None:
        value = value * (b.to(wide).mT @ b.to(wide)) / len(b)
    out.copy_(value)


def default_settings(shape: Shape, dtype: torch.dtype, precision: Precision) -> Settings:
    """Settings for a shape ``(e, e, N)`` nobody has tuned; two sums a tile are kept in registers."""
    split = shape.inner > 0
    return matrix_default(shape, dtype, precision, triangle=True, split=split, accumulators=2)


def space(shape: Shape, dtype: torch.dtype, precision: Precision) -> tuple[Settings, ...]:
    """Settings worth measuring; the default comes first."""
    return matrix_space(shape, dtype, precision, square=True, split=shape.inner > 0, accumulators=2)


def cost(shape: Shape, inner: int, itemsize: int = 4) -> tuple[int, int]:
    """FLOPs and bytes of a symmetric step with a full G ``[inner, inner]``, ``G W`` included."""
    size, _, samples, _ = shape
    flops = 2 * inner * inner * size + size * (size + 1) * (inner + samples)
    return flops, (inner * inner + 3 * inner * size + samples * size + size * size) * itemsize
