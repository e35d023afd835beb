"""Independent matrix products of different sizes in one launch, sharing one epilogue.

Small layers do not fill a GPU, and every launch costs a few microseconds: the layers of a network are
therefore multiplied together. The tiles are those of :mod:`.gemm`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .gemm import Settings, blocks, gemm_reference, gemm_tile
from .grouping import (
    Item,
    Table,
    find_problem,
    read_matrices,
    read_operands,
    require_alike,
    tabulate,
)
from .language import tl, triton
from .launches import (
    Launch,
    Template,
    arithmetic,
    common_kinds,
    launch,
    matrix,
    padded_operand,
    require,
)
from .settings import Precision, Shape, cdiv, matrix_default, short_steps, with_results


@triton.jit
def grouped_gemm_kernel(
    table, alpha: tl.float64, BIAS: tl.constexpr, ADD: tl.constexpr,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, RESULTS: tl.constexpr,
    COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile of some problem."""
    row, index = find_problem(table, tl.program_id(0), COUNT, PADDED, WIDTH)
    rows = tl.load(row + 1).to(tl.int32)
    columns = tl.load(row + 2).to(tl.int32)
    inner = tl.load(row + 3).to(tl.int32)
    a, b = read_operands(row, TYPES, UNITS, ALIGNED)
    out = read_matrices(row, 0, 1, TYPES, UNITS, ALIGNED)[0]
    bias = None
    if BIAS:
        bias = read_matrices(row, 1, 1, TYPES, UNITS, ALIGNED)[0]
    add = None
    if ADD:
        add = read_matrices(row, 1 + BIAS, 1, TYPES, UNITS, ALIGNED)[0]
    inputs = read_matrices(row, 1 + BIAS + ADD, len(KINDS), TYPES, UNITS, ALIGNED)
    outputs = read_matrices(row, 1 + BIAS + ADD + len(KINDS), RESULTS, TYPES, UNITS, ALIGNED)
    gemm_tile(
        a, b, out, outputs, inputs, index, rows, columns, inner,
        alpha, bias, add, EPILOGUE, KINDS, RESULTS,
        BLOCK_M, BLOCK_N, BLOCK_K, GROUP, DTYPE, ACCUMULATOR, PRECISION,
    )  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """The tensors of one product, as in :func:`~.gemm.gemm`, all 2-D."""

    a: Tensor
    b: Tensor
    out: Tensor
    bias: Tensor | None = None
    add: Tensor | None = None
    epilogue_inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Group:
    """Problems in a table in device memory, cut into tiles of given settings."""

    problems: tuple[Problem, ...]
    transpose_a: bool
    transpose_b: bool
    precision: Precision
    settings: Settings
    table: Table


def plan_group(
    problems: Sequence[Problem],
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> Group:
    """Tabulate problems once, for any number of launches. Transpositions hold for all of them.

    Raises InternalError if shapes do not fit, or if types or optional tensors differ between problems.
    """
    require_alike(problems)
    pairs = [
        (p.a.mT if transpose_a else p.a, p.b if transpose_b else p.b.mT) for p in problems
    ]  # both [outer, K]
    given, dtype = settings, problems[0].a.dtype
    if settings is None:
        shapes = [Shape(len(left), len(right), left.shape[1]) for left, right in pairs]
        settings = default_settings(shapes, dtype, precision)
        settings = with_results(settings, 1 + len(problems[0].outputs), dtype, precision)
    items = [_item(p, *pair, settings) for p, pair in zip(problems, pairs, strict=True)]
    table = tabulate(items)
    if given is None and not any(table.arguments["ALIGNED"]):
        # Every element has an address of its own then: 4 warps ran out of registers.
        if problems[0].epilogue_inputs:
            settings = replace(settings, num_warps=8)
        else:
            settings = short_steps(settings, dtype, precision)
    return Group(tuple(problems), transpose_a, transpose_b, precision, settings, table)


def _item(problem: Problem, left: Tensor, right: Tensor, settings: Settings) -> Item:
    """A problem's row of the table; the kernel reads the matrices in this order."""
    (rows, inner), columns = left.shape, right.shape[0]
    require("b", right, columns, inner)
    for tensor in (problem.out, problem.add, *problem.outputs):
        if tensor is not None:
            require("out, add or an output", tensor, rows, columns)
    optional = [tensor for tensor in (problem.bias, problem.add) if tensor is not None]
    return Item(
        rows,
        columns,
        inner,
        cdiv(rows, settings.block_m) * cdiv(columns, settings.block_n),
        (padded_operand(left), padded_operand(right)),
        tuple(
            matrix(tensor)
            for tensor in (problem.out, *optional, *problem.epilogue_inputs, *problem.outputs)
        ),
    )


@Template
def grouped_gemm(
    group: Group,
    *,
    alpha: float = 1.0,
    epilogue: Any = None,
) -> list[Launch]:
    """``α op(A) op(B)`` and the rest of every problem as in :func:`~.gemm.gemm`; the epilogue is common."""
    first = group.problems[0]
    return [
        launch(
            grouped_gemm_kernel,
            (group.table.tiles,),
            group.settings,
            group,
            alpha=alpha,
            BIAS=int(first.bias is not None),
            ADD=int(first.add is not None),
            EPILOGUE=epilogue,
            KINDS=common_kinds([(p.epilogue_inputs, *p.out.shape) for p in group.problems]),
            RESULTS=len(first.outputs),
            **group.table.arguments,
            **blocks(group.settings),
            **arithmetic([first.a, first.b], group.precision),
        )
    ]


def grouped_gemm_reference(
    group: Group,
    *,
    alpha: float = 1.0,
    epilogue: Callable[..., tuple[Tensor, ...]] | None = None,
) -> None:
    """:func:`grouped_gemm` in plain torch, one product after the other."""
    for problem in group.problems:
        gemm_reference(
            **vars(problem),
            transpose_a=group.transpose_a,
            transpose_b=group.transpose_b,
            alpha=alpha,
            epilogue=epilogue,
        )


def default_settings(shapes: Sequence[Shape], dtype: torch.dtype, precision: Precision) -> Settings:
    """Settings for a group, as for one product with the tiles of all: the largest sizes, batched."""
    largest = max(shapes, key=lambda shape: shape.rows * shape.columns)
    whole = sum(shape.rows * shape.columns for shape in shapes)
    batch = whole // (largest.rows * largest.columns)
    return matrix_default(largest._replace(batch=batch), dtype, precision)
