"""General matrix product ``C = op(A) op(B) + bias + D``, and what a generated function makes of its tiles.

An *epilogue* is applied to the tiles of C before they are stored, a ``@triton.jit`` function that returns a
tuple. So a layer's pre-activation, its transfer function and its slope come out of one kernel.
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
    Template,
    arithmetic,
    as_matrices,
    in_memory,
    kinds,
    launch,
    matrix,
    padded_operand,
    require,
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
from .tiles import (
    Matrix,
    Operand,
    grouped_position,
    load_tile,
    multiply_tile,
    number,
    store_results,
)

Settings = MatrixSettings


@triton.jit
def gemm_tile(
    a, b, out, outputs, inputs, index, M, N, K, alpha, bias, add,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, RESULTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
    VIEW_A: tl.constexpr = None, VIEW_B: tl.constexpr = None, PLACES: tl.constexpr = None,
):  # fmt: skip
    """The ``index``-th tile of C, computed, finished and stored."""
    row_tile, column_tile = grouped_position(index, tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    product = multiply_tile(
        a, b, rows, columns, 0, K, None, False, False,
        BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION, VIEW_A, VIEW_B,
    )  # fmt: skip
    row_mask = rows < M
    column_mask = columns < N
    value = product * number(alpha, ACCUMULATOR)
    if bias is not None:
        value += load_tile(bias, rows, columns, row_mask, column_mask, "row", ACCUMULATOR)
    if add is not None:
        value += load_tile(add, rows, columns, row_mask, column_mask, "full", ACCUMULATOR)
    store_results(
        value, out, outputs, inputs, rows, columns, row_mask, column_mask,
        EPILOGUE, KINDS, RESULTS, BLOCK_M, BLOCK_N, PLACES,
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
    a, b, out, outputs, inputs, M, N, K, bias, add,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, RESULTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
    VIEW_A: tl.constexpr = None, VIEW_B: tl.constexpr = None, PLACES: tl.constexpr = None,
):  # fmt: skip
    """One program a tile, one layer of the grid an item of the batch."""
    batch = tl.program_id(1)
    if bias is not None:
        bias = item(bias, batch)
    if add is not None:
        add = item(add, batch)
    gemm_tile(
        operand_item(a, batch), operand_item(b, batch),
        item(out, batch), items(outputs, batch, RESULTS), items(inputs, batch, len(KINDS)),
        tl.program_id(0), M, N, K, 1.0, bias, add, EPILOGUE, KINDS, RESULTS,
        BLOCK_M, BLOCK_N, BLOCK_K, GROUP, DTYPE, ACCUMULATOR, PRECISION, VIEW_A, VIEW_B, PLACES,
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
    add: Tensor | None = None,
    epilogue: Any = None,
    epilogue_inputs: Sequence[Input] = (),
    outputs: Sequence[Tensor] = (),
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out = op(A) op(B) + bias + add``, and what an epilogue makes of it.

    Args:
        a, b: ``[M, K]`` and ``[K, N]`` after transposition, or ``[B, M, K]`` and ``[B, K, N]``; a 2-D
            operand serves every item of a batch. Any strides. If b is 2-D, what stands before K in a is
            joined to rows, of one matrix or of several (:mod:`.joining`).
        out: ``[M, N]`` or ``[B, M, N]``; no alias of an operand.
        bias: a row ``[N]``.
        add: ``[M, N]``; may be ``out``.
        epilogue: ``f(value, t0, …) -> (o0, o1, …)`` with tiles ``t`` of the inputs, each ``[M, N]``, ``[N]``,
            ``[M, 1]``, 0-d or a draw ``[M, N]``. ``o0`` goes to ``out``, the next to ``outputs``.
        precision: of float32 operands, in torch's words (``torch.set_float32_matmul_precision``).

    Sums are float32, float64 for float64 operands. Raises InternalError if shapes do not fit.
    """
    left, right = (a.mT if transpose_a else a), (b if transpose_b else b.mT)  # both [outer, K]
    if out.dim() > 2 and left.shape[:-1] == out.shape[:-1] and right.dim() == 2:
        left, out, add, epilogue_inputs, outputs = joined_rows(
            left, out, add, epilogue_inputs, outputs
        )
    (rows, inner), columns = left.shape[-2:], right.shape[-2]
    batch = out.shape[0] if out.dim() == 3 else 1
    require("b", right, columns, inner)
    require("out", out, rows, columns)
    for name, tensor in (("a", left), ("b", right), ("bias", bias)):
        if tensor is not None and tensor.dim() != 2:
            require(name, tensor, *((columns,) if name == "bias" else (batch, *tensor.shape[-2:])))
    if settings is None:
        settings = default_settings(Shape(rows, columns, inner, batch), left.dtype, precision)
        settings = with_results(settings, 1 + len(outputs), left.dtype, precision)
    for tensor in (*outputs, *([] if add is None else [add])):
        require("an output or addend", tensor, rows, columns)
    tiles = cdiv(rows, settings.block_m) * cdiv(columns, settings.block_n)
    return [
        launch(
            gemm_kernel,
            (tiles, batch),
            settings,
            a=padded_operand(left),
            b=padded_operand(right),
            out=matrix(out),
            outputs=tuple(map(matrix, outputs)),
            inputs=tuple(map(matrix, epilogue_inputs)),
            M=rows,
            N=columns,
            K=inner,
            bias=None if bias is None else matrix(bias),
            add=None if add is None else matrix(add),
            EPILOGUE=epilogue,
            KINDS=kinds(epilogue_inputs, rows, columns),
            RESULTS=len(outputs),
            **blocks(settings),
            **arithmetic([left, right], precision),
        )
    ]


def joined_rows(
    left: Tensor,
    out: Tensor,
    add: Tensor | None,
    inputs: Sequence[Input],
    outputs: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor | None, list[Input], list[Tensor]]:
    """The tensors of a product with one matrix, what stands before their last dimension joined in all."""
    # Of the left operand only its rows count: beside them stand K elements, not N.
    column = left[..., :1]
    of_results = [out, *([] if add is None else [add]), *inputs, *outputs]
    rows, *every = as_matrices((column, *of_results), out.shape, slice(-1, None))
    assert isinstance(rows, Tensor)
    sizes, strides = (*rows.shape[:-1], left.shape[-1]), (*rows.stride()[:-1], left.stride(-1))
    first, *others = every
    addend = others.pop(0) if add is not None else None
    count = len(inputs)
    (out,), results = in_memory([first]), in_memory(others[count:])
    assert addend is None or isinstance(addend, Tensor)
    return left.as_strided(sizes, strides), out, addend, others[:count], results


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
    alpha: float = 1.0,
    add: Tensor | None = None,
    epilogue: Callable[..., tuple[Tensor, ...]] | None = None,
    epilogue_inputs: Sequence[Tensor] = (),
    outputs: Sequence[Tensor] = (),
) -> None:
    """:func:`gemm` in plain torch; the epilogue is a function of tensors here."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    left, right = a.to(wide), b.to(wide)
    value = alpha * ((left.mT if transpose_a else left) @ (right.mT if transpose_b else right))
    if bias is not None:
        value = value + bias.to(wide)
    if add is not None:
        value = value + add.to(wide)
    results = (
        (value,) if epilogue is None else epilogue(value, *(t.to(wide) for t in epilogue_inputs))
    )
    for tensor, result in zip((out, *outputs), results, strict=False):
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
