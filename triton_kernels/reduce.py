"""Sums of a generated function, in a fixed order: losses, dot products, row and column sums.

``out = alpha · Σ f(inputs)``, over all elements, over rows (``[M, N]`` to ``[N]``) or columns (to ``[M]``).
Of more dimensions rows are the first, columns the last; the others are joined (:mod:`.joining`).
The function's other results are stored elementwise, so that a loss and its gradient cost one pass.

Every element is added in float64. That costs nothing here: the kernels wait for memory, and even devices with
a 64th of their arithmetic in float64 add faster than they read. Large sums have two passes, partial sums by
program and their sum in order; nothing is atomic, so equal shapes and settings give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gncompile.errors import InternalError, expected_got

from .elementwise import arithmetic_type
from .language import tl, triton
from .launches import Input, Launch, Template, as_matrices, in_memory, kinds, matrix
from .pointwise_groups import Group, Problem, group_matrices, group_tile, plan_group
from .settings import PROCESSORS, bytes_of, wide_tile
from .tiles import load_tiles, number, store_tile

Over = Literal["all", "rows", "columns"]
"""The dimensions that are summed away."""

KEPT = {"all": slice(0, 0), "rows": slice(0, 1), "columns": slice(-1, None)}
"""The dimension of a sum over rows or columns that is no other's part."""


@dataclass(frozen=True)
class ReduceSettings:
    """The tile added at once, and how many programs share the tiles; sums depend on them in rounding only."""

    block_m: int
    block_n: int
    programs: int = 2 * PROCESSORS
    num_warps: int = 4


Settings = ReduceSettings

TILE = 1024
"""Elements of a tile by default: with float64 accumulators 16 registers a thread."""


def default_settings(rows: int, columns: int, elements: int = TILE) -> ReduceSettings:
    """Tiles as wide as the matrix, up to 256 columns."""
    return ReduceSettings(*wide_tile(rows, columns, 256, elements))


def space(rows: int, columns: int) -> tuple[ReduceSettings, ...]:
    """Settings worth measuring."""
    tiles = dict.fromkeys(default_settings(rows, columns, size) for size in (512, 1024, 2048))
    return tuple(
        ReduceSettings(tile.block_m, tile.block_n, programs, warps)
        for tile in tiles
        for programs in (PROCESSORS, 2 * PROCESSORS, 4 * PROCESSORS)
        for warps in (4, 8)
    )


def cost(inputs: Sequence[Tensor], outputs: Sequence[Tensor] = ()) -> tuple[int, int]:
    """Flops, counted as two an element of the largest input, and bytes moved."""
    return 2 * max(tensor.numel() for tensor in inputs), bytes_of((*inputs, *outputs))


@triton.jit
def product(a, b):
    """The summand of a dot product."""
    return (a * b,)


@triton.jit
def itself(a):
    """The summand of a plain sum."""
    return (a,)


# Kernels --------------------------------------------------------------------------------------------------


@triton.jit
def summand_tile(
    inputs, outputs, rows, columns, row_count, column_count,
    FUNCTION: tl.constexpr, KINDS: tl.constexpr, RESULTS: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of summands in float64, zero outside; the function's other results are stored."""
    row_mask = rows < row_count
    column_mask = columns < column_count
    tiles = load_tiles(inputs, rows, columns, row_mask, column_mask, KINDS, DTYPE)
    results = FUNCTION(*tiles)
    for i in tl.static_range(RESULTS):
        result = tl.broadcast_to(results[i + 1], (BLOCK_M, BLOCK_N))
        store_tile(outputs[i], result, rows, columns, row_mask, column_mask)
    value = tl.broadcast_to(results[0], (BLOCK_M, BLOCK_N)).to(tl.float64)
    return tl.where(row_mask[:, None] & column_mask[None, :], value, 0.0)


@triton.jit
def partial_kernel(
    inputs, outputs, partial, row_count, column_count, row_steps, column_steps,
    FUNCTION: tl.constexpr, KINDS: tl.constexpr, RESULTS: tl.constexpr, DTYPE: tl.constexpr,
    OVER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program ``(i, j)`` sums its tiles into ``partial[i, j]``, ``partial[i, N]`` or ``partial[M]``."""
    i = tl.program_id(0)
    j = tl.program_id(1)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float64)
    for row_step in range(row_steps):
        rows = (i * row_steps + row_step) * BLOCK_M + tl.arange(0, BLOCK_M)
        for column_step in range(column_steps):
            columns = (j * column_steps + column_step) * BLOCK_N + tl.arange(0, BLOCK_N)
            total += summand_tile(
                inputs, outputs, rows, columns, row_count, column_count,
                FUNCTION, KINDS, RESULTS, DTYPE, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    if OVER == "all":
        tl.store(partial + i * tl.num_programs(1) + j, tl.sum(tl.sum(total, axis=1), axis=0))
    elif OVER == "rows":
        columns = j * BLOCK_N + tl.arange(0, BLOCK_N)
        at = partial + i.to(tl.int64) * column_count + columns
        tl.store(at, tl.sum(total, axis=0), mask=columns < column_count)
    else:
        rows = i * BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(partial + rows, tl.sum(total, axis=1), mask=rows < row_count)


@triton.jit
def finish_kernel(
    partial, out, stride, parts, size, alpha: tl.float64,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out[k] = alpha Σ_s partial[s, k]`` in the order of s."""
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_S, BLOCK_K), tl.float64)
    for first in range(0, parts, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        mask = (s < parts)[:, None] & (k < size)[None, :]
        total += tl.load(
            partial + s.to(tl.int64)[:, None] * size + k[None, :], mask=mask, other=0.0
        )
    result = tl.sum(total, axis=0) * number(alpha, total.dtype)
    tl.store(out + k.to(tl.int64) * stride, result, mask=k < size)


@triton.jit
def grouped_partial_kernel(
    table, partial, COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    FUNCTION: tl.constexpr, KINDS: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program ``t`` sums tile ``t`` of all problems' tiles in a row."""
    entry, rows, columns, row_count, column_count = group_tile(
        table, COUNT, PADDED, WIDTH, WHOLE, BLOCK_M, BLOCK_N
    )
    total = summand_tile(
        group_matrices(entry, 0, len(KINDS), TYPES, UNITS, ALIGNED), (),
        rows, columns, row_count, column_count,
        FUNCTION, KINDS, 0, DTYPE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    tl.store(partial + tl.program_id(0), tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit
def slot_kernel(partial, firsts, out, stride, alpha: tl.float64, BLOCK_S: tl.constexpr):
    """Program k sums the partial sums from ``firsts[k]`` to ``firsts[k + 1]`` into ``out[k]``."""
    slot = tl.program_id(0)
    last = tl.load(firsts + slot + 1)
    total = tl.zeros((BLOCK_S,), tl.float64)
    for first in range(tl.load(firsts + slot), last, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        total += tl.load(partial + at, mask=at < last, other=0.0)
    result = tl.sum(total, axis=0) * number(alpha, total.dtype)
    tl.store(out + slot * stride, result)


# Launches -------------------------------------------------------------------------------------------------


def _reduce(
    function: Any,
    inputs: Sequence[Input],
    out: Tensor,
    *,
    over: Over = "all",
    outputs: Sequence[Tensor] = (),
    alpha: float = 1.0,
    settings: ReduceSettings | None = None,
) -> list[Launch]:
    """``out = alpha · Σ function(*inputs)[0]``; the function's further results go to ``outputs``.

    Args:
        function: A ``@triton.jit`` function of tiles to a tuple of tiles.
        inputs: ``[M, N]`` (at least one tensor), ``[N]``, ``[M, 1]``, ``[]``; or of more dimensions.
        out: ``[]``, or ``[N]`` over rows, or ``[M]`` or ``[M, 1]`` over columns; contiguous beyond that.
        over: The dimensions that are summed away.
        outputs: Tensors ``[M, N]``.
        alpha: What the sum is multiplied with.
        settings: :func:`default_settings` by default.
    """
    shape = _shape(inputs)
    every = as_matrices((*inputs, *outputs), shape, KEPT[over])
    inputs, outputs = every[: len(inputs)], in_memory(every[len(inputs) :])
    rows, columns = _size(inputs)
    settings = settings or default_settings(rows, columns)
    size = {"all": 1, "rows": columns, "columns": rows}[over]
    if out.numel() != size:
        raise InternalError(
            f"a sum over {over} has another size", where=expected_got(size, out.numel())
        )
    out = out.view(-1) if len(shape) > 2 else out
    grid, steps = _shares(rows, columns, over, settings)
    parts = {"all": grid[0] * grid[1], "rows": grid[0], "columns": 1}[over]
    partial = torch.empty(parts * size, dtype=torch.float64, device=out.device)
    arguments = {
        "inputs": tuple(map(matrix, inputs)),
        "outputs": tuple(map(matrix, outputs)),
        "partial": partial,
        "row_count": rows,
        "column_count": columns,
        "row_steps": steps[0],
        "column_steps": steps[1],
        "FUNCTION": function,
        "KINDS": kinds(inputs, rows, columns),
        "RESULTS": len(outputs),
        "DTYPE": arithmetic_type(inputs),
        "OVER": over,
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
    }
    finish = _finish(partial, parts, out, size, alpha)
    return [Launch(partial_kernel, grid, arguments, settings.num_warps, 1), finish]


reduce = Template(_reduce)


def _shape(inputs: Sequence[Input]) -> torch.Size:
    return max(in_memory(inputs), key=lambda tensor: (tensor.numel(), tensor.dim())).shape


def _size(inputs: Sequence[Input]) -> tuple[int, int]:
    shape = _shape(inputs)
    if len(shape) > 2 or 0 in shape:
        raise InternalError(f"only matrices with elements are summed, not {list(shape)}")
    rows, columns = (1,) * (2 - len(shape)) + tuple(shape)
    return rows, columns


def _shares(
    rows: int, columns: int, over: Over, settings: ReduceSettings
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The grid, and how many tiles down and across each program sums."""
    down = triton.cdiv(rows, settings.block_m)
    across = triton.cdiv(columns, settings.block_n)
    if over == "columns":
        return (down, 1), (1, across)
    if over == "rows":
        split = max(min(settings.programs // across, down), 1)
        steps = triton.cdiv(down, split)
        return (triton.cdiv(down, steps), across), (steps, 1)
    if across > settings.programs:
        steps = triton.cdiv(across, settings.programs)
        return (1, triton.cdiv(across, steps)), (down, steps)
    steps = triton.cdiv(down, max(settings.programs // across, 1))
    return (triton.cdiv(down, steps), across), (steps, 1)


def _finish(partial: Tensor, parts: int, out: Tensor, size: int, alpha: float) -> Launch:
    block_k = min(triton.next_power_of_2(size), 64)
    block_s = max(min(triton.next_power_of_2(parts), 1024 // block_k), 1)
    arguments = {
        "partial": partial,
        "out": out,
        "stride": out.stride(0) if out.dim() else 0,
        "parts": parts,
        "size": size,
        "alpha": alpha,
        "BLOCK_S": block_s,
        "BLOCK_K": block_k,
    }
    return Launch(finish_kernel, (triton.cdiv(size, block_k),), arguments, 4, 1)


def plan_sums(problems: Sequence[Problem], settings: ReduceSettings | None = None) -> Group:
    """The table of :func:`grouped_reduce`, built once: inputs of each problem and the slot it is added to."""
    tile = settings or ReduceSettings(8, 128)
    return plan_group(problems, tile.block_m, tile.block_n)


def _grouped_reduce(
    function: Any,
    group: Group,
    out: Tensor,
    *,
    alpha: float = 1.0,
    num_warps: int = 4,
) -> list[Launch]:
    """``out[slot] = alpha · Σ function(*inputs)[0]`` over the problems of each slot, in two launches.

    Dot products of many pairs at once, each slot summed over the layers: the entries of a quadratic model.
    A slot that no problem names gets zero.
    """
    slots = len(group.slots) - 1
    if out.shape != (slots,):
        raise InternalError(
            "sums need one element a slot", where=expected_got([slots], list(out.shape))
        )
    partial = torch.empty(group.tiles, dtype=torch.float64, device=out.device)
    first = {
        **group.arguments(),
        "partial": partial,
        "FUNCTION": function,
        "DTYPE": arithmetic_type(group.tensors),
    }
    second = {
        "partial": partial,
        "firsts": torch.tensor(group.slots, dtype=torch.int32, device=out.device),
        "out": out,
        "stride": out.stride(0),
        "alpha": alpha,
        "BLOCK_S": 1024,
    }
    return [
        Launch(grouped_partial_kernel, (group.tiles,), first, num_warps, 1, group),
        Launch(slot_kernel, (slots,), second, 4, 1),
    ]


grouped_reduce = Template(_grouped_reduce)


# References -----------------------------------------------------------------------------------------------


def reduce_reference(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    out: Tensor,
    *,
    over: Over = "all",
    outputs: Sequence[Tensor] = (),
    alpha: float = 1.0,
) -> None:
    """:data:`reduce` in torch, with a function of tensors."""
    rows, columns = _size(inputs)
    summand, *others = function(*inputs)
    summand = summand.expand(rows, columns).double()
    dimensions = {"all": (0, 1), "rows": (0,), "columns": (1,)}[over]
    out.copy_((alpha * summand.sum(dimensions)).reshape(out.shape))
    for target, other in zip(outputs, others, strict=False):
        target.copy_(other)
