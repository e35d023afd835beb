"""One step of the averaged Gauss-Newton recursion (KFRA): ``out = (Wᵀ G W) ⊙ E[b bᵀ]``.

G is the block at a layer's pre-activations, W its weights, b the slopes of the transfer function below, one
row a sample. Both products are formed tile by tile in one kernel, so that neither is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .gemm import gemm
from .language import tl, triton
from .launches import (
    Launch,
    Number,
    Template,
    arithmetic,
    averaging,
    kinds,
    launch,
    matrix,
    padded_empty,
    padded_operand,
    require,
    transposed,
)
from .moments import finish_moment, moment_position, sum_parts
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
from .tiles import multiply_tile, scale, scaled

Settings = MatrixSettings


@triton.jit
def congruence_kernel(
    w, y, y_inputs, b, b_inputs, c, c_inputs, out, M, N, INNER, SAMPLES, mean: tl.float64,
    workspace, parts, alpha: tl.float64, alpha_tensor, add, beta: tl.float64, beta_tensor,
    AVERAGE: tl.constexpr, SYMMETRIC: tl.constexpr, SLOPES: tl.constexpr,
    SCALED: tl.constexpr, Y_KINDS: tl.constexpr,
    PROLOGUE: tl.constexpr, KINDS_B: tl.constexpr, KINDS_C: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, SLOPE_DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile: ``WᵀY`` there, times the mean of ``b cᵀ`` there, averaged and stored."""
    index = tl.program_id(0)
    row_tile, column_tile = moment_position(index, M, N, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    value = multiply_tile(
        w, (), y, y_inputs, rows, columns, 0, INNER,
        None, (), False, SCALED, Y_KINDS, False,
        BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
    )  # fmt: skip
    if SLOPES == "here":
        value *= scale(mean, None, ACCUMULATOR) * multiply_tile(
            b, b_inputs, c, c_inputs, rows, columns, 0, SAMPLES,
            PROLOGUE, KINDS_B, False, PROLOGUE, KINDS_C, False,
            BLOCK_M, BLOCK_N, BLOCK_K, SLOPE_DTYPE, ACCUMULATOR, PRECISION,
        )  # fmt: skip
    elif SLOPES == "parts":
        tiles = tl.num_programs(0)
        moment = sum_parts(workspace, parts, index, tiles, BLOCK_M, BLOCK_N, ACCUMULATOR)
        value *= scale(mean, None, ACCUMULATOR) * moment
    finish_moment(
        value, row_tile, column_tile, M, N, out, (), (),
        alpha, alpha_tensor, add, beta, beta_tensor, AVERAGE, SYMMETRIC,
        None, (), (), BLOCK_M, BLOCK_N,
    )  # fmt: skip


@Template
def congruence(
    w: Tensor,
    g: Tensor,
    b: Tensor | None,
    out: Tensor,
    *,
    w_right: Tensor | None = None,
    b_right: Tensor | None = None,
    average: Number | None = None,
    prologue: Any = None,
    prologue_inputs: Sequence[Tensor] = (),
    prologue_inputs_right: Sequence[Tensor] = (),
    scratch: Tensor | None = None,
    precision: Precision = "highest",
    settings: Settings | None = None,
    product_settings: Settings | None = None,
) -> list[Launch]:
    """``out ← w̃ out + (1-w̃) (Wᵀ G V) ⊙ (1/N) Σ_n φ(b_n) φ(c_n)ᵀ`` with the weight w̃ = ``average``.

    Args:
        w: W ``[d, e]``; g: G as a scalar ``[]``, a diagonal ``[d]`` or full ``[d, d']``.
        b: ``[N, e]``: the slopes, or what φ makes slopes of. None: the product of matrices alone.
        w_right, b_right: V ``[d', e']`` and c ``[N, e']`` of a block between two tensors. Without them V is
            W and c is b, G is taken as symmetric, and ``out`` is symmetric bit by bit.
        out: ``[e, e']``; no alias of an input.
        prologue: φ, a function ``f(tile, t0, …) -> (tile,)``; ``prologue_inputs`` go with b,
            ``prologue_inputs_right`` with c (by default the same), each ``[N, e]``, ``[e]`` or 0-d.
        scratch: ``[d, e']`` for ``G V``, if G is full; made here if not given.
        precision: of float32 products.
        product_settings: those of ``G V``.

    Raises InternalError if shapes or settings do not fit.
    """
    symmetric = w_right is None
    right, c = (w if w_right is None else w_right), (b if b_right is None else b_right)
    rows, columns = w.shape[1], right.shape[1]
    require("out", out, rows, columns)
    samples = 0 if b is None else b.shape[0]
    if settings is None:
        settings = default_settings(
            Shape(rows, columns, samples), w.dtype, precision, symmetric=symmetric
        )
    if symmetric:
        require_square(settings)
    found = []
    if g.dim() == 2:
        if scratch is None:
            scratch = padded_empty(len(g), columns, w)
        found += gemm.launches(g, right, scratch, precision=precision, settings=product_settings)
        right = scratch
    require("w", w, len(right), rows)
    inputs, inputs_right = prologue_inputs, prologue_inputs_right or prologue_inputs
    slopes: dict[str, Any] = {
        "b": None, "b_inputs": (), "c": None, "c_inputs": (), "SLOPES": None,
        "KINDS_B": (), "KINDS_C": (), "SLOPE_DTYPE": None, "workspace": None, "parts": 0,
    }  # fmt: skip
    if b is not None and c is not None:
        require("b", b, samples, rows)
        require("b_right", c, samples, columns)
        slopes["SLOPE_DTYPE"] = arithmetic([b, c], precision)["DTYPE"]
        if settings.split > 1:
            parts = moment_launches(
                b, c, out, symmetric, average=None, alpha=1.0, homogeneous=False,
                prologues=((prologue, inputs), (prologue, inputs_right)), epilogue=None,
                epilogue_inputs=(), outputs=(), precision=precision, settings=settings,
            )[0]  # fmt: skip
            found.append(parts)
            slopes |= {"SLOPES": "parts", "parts": settings.split}
            slopes["workspace"] = parts.arguments["workspace"]
        else:
            slopes |= {"SLOPES": "here", **_side("b", b, inputs), **_side("c", c, inputs_right)}
    scale, beta, beta_tensor = averaging(average)
    found.append(
        launch(
            congruence_kernel,
            (tile_counts(Shape(rows, columns, samples), settings, symmetric),),
            settings,
            w=padded_operand(w.mT),
            y=padded_operand(right.mT),
            y_inputs=(matrix(g),) if g.dim() == 1 else (),
            out=matrix(out),
            M=rows,
            N=columns,
            INNER=len(right),
            SAMPLES=samples,
            mean=1 / max(samples, 1),
            alpha=scale,
            alpha_tensor=g if g.dim() == 0 else None,
            add=None if average is None else matrix(out),
            beta=beta,
            beta_tensor=beta_tensor,
            AVERAGE=beta_tensor is not None,
            SYMMETRIC=symmetric,
            SCALED=scaled if g.dim() == 1 else None,
            Y_KINDS=("row",) if g.dim() == 1 else (),
            PROLOGUE=prologue,
            BLOCK_M=settings.block_m,
            BLOCK_N=settings.block_n,
            BLOCK_K=settings.block_k,
            GROUP=settings.group,
            **slopes,
            **arithmetic([w, right], precision),
        )
    )
    return found


def _side(name: str, slopes: Tensor, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The arguments of one factor of the mean of ``b cᵀ``."""
    turned = transposed(inputs)
    return {
        name: padded_operand(slopes.mT, turned),
        f"{name}_inputs": tuple(matrix(each) for each in turned),
        f"KINDS_{name.upper()}": kinds(turned, slopes.shape[1], slopes.shape[0]),
    }


def congruence_reference(
    w: Tensor,
    g: Tensor,
    b: Tensor | None,
    out: Tensor,
    *,
    w_right: Tensor | None = None,
    b_right: Tensor | None = None,
    average: Number | None = None,
    prologue: Callable[..., tuple[Tensor, ...]] | None = None,
    prologue_inputs: Sequence[Tensor] = (),
    prologue_inputs_right: Sequence[Tensor] = (),
    scratch: Tensor | None = None,
    precision: Precision = "highest",
    settings: Settings | None = None,
    product_settings: Settings | None = None,
) -> None:
    """:func:`congruence` in plain torch."""
    wide = accumulator(w.dtype)
    left = w.to(wide)
    right = left if w_right is None else w_right.to(wide)
    product = (
        g.to(wide) @ right if g.dim() == 2 else (g[:, None] if g.dim() else g).to(wide) * right
    )
    value = left.mT @ product
    if b is not None:
        c = b if b_right is None else b_right
        sides = [(b, prologue_inputs), (c, prologue_inputs_right or prologue_inputs)]
        b_values, c_values = (
            x.to(wide) if prologue is None else prologue(x.to(wide), *inputs)[0]
            for x, inputs in sides
        )
        value = value * (b_values.mT @ c_values) / len(b)
    out.copy_(value if average is None else average * out.to(wide) + (1 - average) * value)


def default_settings(
    shape: Shape, dtype: torch.dtype, precision: Precision, *, symmetric: bool = True
) -> Settings:
    """Settings for a shape ``(e, e', N)`` nobody has tuned; two sums a tile are kept in registers."""
    return matrix_default(
        shape, dtype, precision, triangle=symmetric, split=shape.inner > 0, accumulators=2
    )


def space(shape: Shape, dtype: torch.dtype, precision: Precision) -> tuple[Settings, ...]:
    """Settings worth measuring for a symmetric block; the default comes first."""
    return matrix_space(shape, dtype, precision, square=True, split=shape.inner > 0, accumulators=2)


def cost(shape: Shape, inner: int, itemsize: int = 4) -> tuple[int, int]:
    """FLOPs and bytes of a symmetric step with a full G ``[inner, inner]``, ``G W`` included."""
    size, _, samples, _ = shape
    flops = 2 * inner * inner * size + size * (size + 1) * (inner + samples)
    return flops, (inner * inner + 3 * inner * size + samples * size + size * size) * itemsize
