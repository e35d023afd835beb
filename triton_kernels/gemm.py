"""General matrix product ``C = α op(A) op(B) + bias + β D`` with generated functions before and after.

A *prologue* is applied to the tiles of op(A) as they are loaded, an *epilogue* to the tiles of C before they
are stored: both are ``@triton.jit`` functions that return a tuple. So a layer's pre-activation, its
transfer function and its slope come out of one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .language import tl, triton
from .launches import (
    Input,
    Launch,
    Number,
    Template,
    arithmetic,
    factor,
    kinds,
    launch,
    matrix,
    padded_operand,
    require,
    transposed,
)
from .settings import (
    MatrixSettings,
    Precision,
    Shape,
    cdiv,
    matrix_default,
    matrix_space,
    with_results,
)
from .tiles import Matrix, Operand, combine, grouped_position, multiply_tile, store_results

Settings = MatrixSettings


@triton.jit
def gemm_tile(
    a, a_inputs, b, out, outputs, inputs, index, M, N, K,
    alpha, alpha_tensor, bias, add, beta, beta_tensor,
    PROLOGUE: tl.constexpr, PROLOGUE_KINDS: tl.constexpr,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, STORED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The ``index``-th tile of C, computed, finished and stored."""
    row_tile, column_tile = grouped_position(index, tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    product = multiply_tile(
        a, a_inputs, b, (), rows, columns, 0, K,
        PROLOGUE, PROLOGUE_KINDS, False, None, (), False,
        BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
    )  # fmt: skip
    row_mask = rows < M
    column_mask = columns < N
    value = combine(
        product, rows, columns, row_mask, column_mask,
        alpha, alpha_tensor, bias, add, beta, beta_tensor, False,
    )  # fmt: skip
    store_results(
        value, out, outputs, inputs, rows, columns, row_mask, column_mask,
        EPILOGUE, KINDS, STORED, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def item(x, index):
    """Item ``index`` of a batch of matrices."""
    return Matrix(x.pointer + index.to(tl.int64) * x.batch, x.row, x.column, 0)


@triton.jit
def operand_item(x, index):
    """Item ``index`` of a batch of operands."""
    pointer = x.pointer + index.to(tl.int64) * x.batch
    return Operand(pointer, x.outer, x.inner, 0, x.readable, x.size)


@triton.jit
def items(matrices, index, COUNT: tl.constexpr):
    """Item ``index`` of each of ``COUNT`` batches."""
    found = ()
    for i in tl.static_range(COUNT):
        found = found + (item(matrices[i], index),)  # type: ignore[assignment]
    return found


@triton.jit
def gemm_kernel(
    a, a_inputs, b, out, outputs, inputs, M, N, K,
    alpha: tl.float64, alpha_tensor, bias, add, beta: tl.float64, beta_tensor,
    PROLOGUE: tl.constexpr, PROLOGUE_KINDS: tl.constexpr,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, STORED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile, one layer of the grid an item of the batch."""
    batch = tl.program_id(1)
    if add is not None:
        add = item(add, batch)
    gemm_tile(
        operand_item(a, batch), items(a_inputs, batch, len(PROLOGUE_KINDS)), operand_item(b, batch),
        item(out, batch), items(outputs, batch, len(STORED)), items(inputs, batch, len(KINDS)),
        tl.program_id(0), M, N, K, alpha, alpha_tensor, bias, add, beta, beta_tensor,
        PROLOGUE, PROLOGUE_KINDS, EPILOGUE, KINDS, STORED,
        BLOCK_M, BLOCK_N, BLOCK_K, GROUP, DTYPE, ACCUMULATOR, PRECISION,
    )  # fmt: skip


@Template
def gemm(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Tensor | None = None,
    alpha: Number = 1.0,
    add: Tensor | None = None,
    beta: Number = 1.0,
    prologue_a: Any = None,
    prologue_a_inputs: Sequence[Tensor] = (),
    epilogue: Any = None,
    epilogue_inputs: Sequence[Input] = (),
    outputs: Sequence[Tensor | None] = (),
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out = α op(A) op(B) + bias + β add``, and what an epilogue makes of it.

    Args:
        a, b: ``[M, K]`` and ``[K, N]`` after transposition, or ``[B, M, K]`` and ``[B, K, N]``; a 2-D
            operand serves every item of a batch. Any strides.
        out: ``[M, N]`` or ``[B, M, N]``; no alias of an operand.
        bias: a row ``[N]``.
        alpha, beta: numbers, or 0-d tensors read on the device.
        add: ``[M, N]``; may be ``out``.
        prologue_a: ``f(tile, t0, …) -> (tile,)``, applied to op(A). Its inputs are shaped like ``a``, a row
            along its last dimension, or 0-d.
        epilogue: ``f(value, t0, …) -> (o0, o1, …)`` with tiles ``t`` of the inputs, each ``[M, N]``, ``[N]``,
            ``[M, 1]``, 0-d or a draw ``[M, N]``. ``o0`` goes to ``out``, the others to ``outputs``, unless
            None there.
        precision: of float32 operands, in torch's words (``torch.set_float32_matmul_precision``).

    Sums are float32, float64 for float64 operands. Raises InternalError if shapes do not fit.
    """
    left, right = (a.mT if transpose_a else a), (b if transpose_b else b.mT)  # both [outer, K]
    (rows, inner), columns = left.shape[-2:], right.shape[-2]
    batch = out.shape[0] if out.dim() == 3 else 1
    require("b", right, columns, inner)
    require("out", out, rows, columns)
    for name, tensor in (("a", a), ("b", b), ("bias", bias)):
        if tensor is not None and tensor.dim() != 2:
            require(name, tensor, *((columns,) if name == "bias" else (batch, *tensor.shape[-2:])))
    left_inputs = transposed(prologue_a_inputs) if transpose_a else list(prologue_a_inputs)
    if settings is None:
        settings = default_settings(Shape(rows, columns, inner, batch), left.dtype, precision)
        settings = with_results(settings, 1 + len(outputs), left.dtype, precision)
    stored = [(i, tensor) for i, tensor in enumerate(outputs, start=1) if tensor is not None]
    for tensor in [tensor for _, tensor in stored] + ([] if add is None else [add]):
        require("an output or addend", tensor, rows, columns)
    tiles = cdiv(rows, settings.block_m) * cdiv(columns, settings.block_n)
    (alpha, alpha_tensor), (beta, beta_tensor) = factor(alpha), factor(beta)
    return [
        launch(
            gemm_kernel,
            (tiles, batch),
            settings,
            a=padded_operand(left, left_inputs),
            a_inputs=tuple(matrix(tensor) for tensor in left_inputs),
            b=padded_operand(right),
            out=matrix(out),
            outputs=tuple(matrix(tensor) for _, tensor in stored),
            inputs=tuple(matrix(tensor) for tensor in epilogue_inputs),
            M=rows,
            N=columns,
            K=inner,
            alpha=alpha,
            alpha_tensor=alpha_tensor,
            bias=None if bias is None else matrix(bias),
            add=None if add is None else matrix(add),
            beta=beta,
            beta_tensor=beta_tensor,
            PROLOGUE=prologue_a,
            PROLOGUE_KINDS=kinds(left_inputs, rows, inner),
            EPILOGUE=epilogue,
            KINDS=kinds(epilogue_inputs, rows, columns),
            STORED=tuple(i for i, _ in stored),
            **blocks(settings),
            **arithmetic([left, right], precision),
        )
    ]


def blocks(settings: Settings) -> dict[str, int]:
    """The compile-time arguments that settings stand for."""
    return {
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
        "BLOCK_K": settings.block_k,
        "GROUP": settings.group,
    }


def gemm_reference(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Tensor | None = None,
    alpha: Number = 1.0,
    add: Tensor | None = None,
    beta: Number = 1.0,
    prologue_a: Callable[..., tuple[Tensor, ...]] | None = None,
    prologue_a_inputs: Sequence[Tensor] = (),
    epilogue: Callable[..., tuple[Tensor, ...]] | None = None,
    epilogue_inputs: Sequence[Tensor] = (),
    outputs: Sequence[Tensor | None] = (),
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> None:
    """:func:`gemm` in plain torch; prologue and epilogue are functions of tensors here."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    left = a.to(wide)
    if prologue_a is not None:
        (left,) = prologue_a(left, *(tensor.to(wide) for tensor in prologue_a_inputs))
        left = left.to(a.dtype).to(wide)
    right = b.to(wide)
    value = alpha * ((left.mT if transpose_a else left) @ (right.mT if transpose_b else right))
    if bias is not None:
        value = value + bias.to(wide)
    if add is not None:
        value = value + beta * add.to(wide)
    results = (
        (value,) if epilogue is None else epilogue(value, *(t.to(wide) for t in epilogue_inputs))
    )
    for tensor, result in zip((out, *outputs), results, strict=False):
        if tensor is not None:
            tensor.copy_(result)


def default_settings(shape: Shape, dtype: torch.dtype, precision: Precision) -> Settings:
    """Settings for a shape nobody has tuned."""
    return matrix_default(shape, dtype, precision)


def space(shape: Shape, dtype: torch.dtype, precision: Precision) -> tuple[Settings, ...]:
    """Settings worth measuring for this shape; the default comes first."""
    return matrix_space(shape, dtype, precision)


def cost(shape: Shape, itemsize: int = 4) -> tuple[int, int]:
    """FLOPs and bytes of one call: every operand read once, the result written once."""
    rows, columns, inner, batch = shape
    elements = rows * inner + inner * columns + rows * columns
    return 2 * batch * rows * columns * inner, batch * elements * itemsize
