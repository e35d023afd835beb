"""One launch for a chain of elementwise operations: a generated function applied tile by tile.

``outputs = f(inputs)`` for inputs that are broadcast to the outputs' shape ``[M, N]``: matrices, rows
``[N]``, columns ``[M, 1]`` and scalars ``[]`` in device memory. Also ``[N]``, ``[]`` and more dimensions,
broadcast as in torch, where strides let them be read as matrices or as a batch of them (:mod:`.joining`). Any
strides; an output may be an input.

The grouped form runs many problems of different sizes in one launch: the updates of all parameters, say.
Memory-bound in both forms: every element is read once and written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gncompile.errors import InternalError, expected_got

from .gemm import items
from .language import tl, triton
from .launches import TYPES, Input, Launch, Template, as_matrices, in_memory, kinds, matrix
from .pointwise_groups import Group, Problem, group_matrices, group_tile, plan_group
from .settings import bytes_of, wide_tile
from .tiles import load_tiles, store_tile


@dataclass(frozen=True)
class ElementwiseSettings:
    """The tile that one program computes, and its warps."""

    block_m: int
    block_n: int
    num_warps: int = 4


Settings = ElementwiseSettings

TILE = 1024
"""Elements a program computes by default: 8 for each of 128 threads, so that long functions do not spill."""


def default_settings(rows: int, columns: int, elements: int = TILE) -> ElementwiseSettings:
    """Tiles as wide as the matrix, up to 512 columns."""
    return ElementwiseSettings(*wide_tile(rows, columns, 512, elements))


def space(rows: int, columns: int) -> tuple[ElementwiseSettings, ...]:
    """Settings worth measuring."""
    shapes = dict.fromkeys(
        (tile.block_m, tile.block_n)
        for elements in (1024, 512, 2048, 4096)
        for tile in (default_settings(rows, columns, elements),)
    )
    return tuple(ElementwiseSettings(m, n, warps) for m, n in shapes for warps in (2, 4, 8))


def cost(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int]:
    """Flops, counted as one an element and result, and bytes moved."""
    return sum(tensor.numel() for tensor in outputs), bytes_of((*inputs, *outputs))


@triton.jit
def apply_tile(
    inputs, outputs, rows, columns, row_count, column_count,
    FUNCTION: tl.constexpr, KINDS: tl.constexpr, RESULTS: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Load, apply, store one tile. Every input is read before any output is written: they may alias."""
    row_mask = rows < row_count
    column_mask = columns < column_count
    tiles = load_tiles(inputs, rows, columns, row_mask, column_mask, KINDS, DTYPE)
    results = FUNCTION(*tiles)
    for i in tl.static_range(RESULTS):
        result = tl.broadcast_to(results[i], (BLOCK_M, BLOCK_N))
        store_tile(outputs[i], result, rows, columns, row_mask, column_mask)


@triton.jit
def elementwise_kernel(
    inputs, outputs, row_count, column_count,
    FUNCTION: tl.constexpr, KINDS: tl.constexpr, RESULTS: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program ``(t, z)`` computes tile ``t``, counted row by row, of batch item ``z``."""
    index = tl.program_id(0)
    batch = tl.program_id(1)
    column_tiles = tl.cdiv(column_count, BLOCK_N)
    rows = index // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = index % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    apply_tile(
        items(inputs, batch, len(KINDS)), items(outputs, batch, RESULTS),
        rows, columns, row_count, column_count,
        FUNCTION, KINDS, RESULTS, DTYPE, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def grouped_elementwise_kernel(
    table, COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    FUNCTION: tl.constexpr, KINDS: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program ``t`` computes tile ``t`` of all problems' tiles in a row."""
    entry, rows, columns, row_count, column_count = group_tile(
        table, COUNT, PADDED, WIDTH, WHOLE, BLOCK_M, BLOCK_N
    )
    RESULTS: tl.constexpr = len(TYPES) - len(KINDS)
    apply_tile(
        group_matrices(entry, 0, len(KINDS), TYPES, UNITS, ALIGNED),
        group_matrices(entry, len(KINDS), RESULTS, TYPES, UNITS, ALIGNED),
        rows, columns, row_count, column_count,
        FUNCTION, KINDS, RESULTS, DTYPE, BLOCK_M, BLOCK_N,
    )  # fmt: skip


def require_one_shape(outputs: Sequence[Tensor]) -> None:
    """Raise unless all outputs have the shape of the first."""
    first = outputs[0].shape
    for tensor in outputs[1:]:
        if tensor.shape != first:
            raise InternalError(
                "outputs of one elementwise launch differ in shape",
                where=expected_got(list(first), list(tensor.shape)),
            )


def arithmetic_type(inputs: Sequence[Input]) -> Any:
    """float64 if any tensor is, else float32: half-precision numbers are widened on the way in."""
    wide = any(tensor.dtype == torch.float64 for tensor in in_memory(inputs))
    return TYPES[torch.float64 if wide else torch.float32]


def _elementwise(
    function: Any,
    inputs: Sequence[Input],
    outputs: Sequence[Tensor],
    *,
    settings: ElementwiseSettings | None = None,
) -> list[Launch]:
    """``outputs = function(*inputs)`` in one launch; see the module docstring.

    Args:
        function: A ``@triton.jit`` function of as many tiles as there are inputs, to a tuple of tiles.
        inputs: What can be broadcast to the outputs; draws of their shape.
        outputs: One or more tensors of one shape; they receive the first results in order.
        settings: A tile, :func:`default_settings` by default.
    """
    require_one_shape(outputs)
    shape = outputs[0].shape
    every = as_matrices((*inputs, *outputs), shape)
    inputs, outputs = every[: len(inputs)], in_memory(every[len(inputs) :])
    *several, rows, columns = (1,) * (2 - len(shape)) + tuple(outputs[0].shape)
    batch = math.prod(several)
    settings = settings or default_settings(rows, columns)
    if outputs[0].numel() == 0:
        return []
    tiles = triton.cdiv(rows, settings.block_m) * triton.cdiv(columns, settings.block_n)
    arguments = {
        "inputs": tuple(map(matrix, inputs)),
        "outputs": tuple(map(matrix, outputs)),
        "row_count": rows,
        "column_count": columns,
        "FUNCTION": function,
        "KINDS": kinds(inputs, rows, columns),
        "RESULTS": len(outputs),
        "DTYPE": arithmetic_type((*inputs, *outputs)),
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
    }
    return [Launch(elementwise_kernel, (tiles, batch), arguments, settings.num_warps, 1)]


elementwise = Template(_elementwise)


def plan_elementwise_group(
    problems: Sequence[Problem], settings: ElementwiseSettings | None = None
) -> Group:
    """The table of a grouped launch, built once, with tiles of ``settings``.

    Problems may differ in size, not in number, kinds and types of operands.
    """
    tile = settings or ElementwiseSettings(8, 256)
    return plan_group(problems, tile.block_m, tile.block_n)


def _grouped_elementwise(function: Any, group: Group, *, num_warps: int = 4) -> list[Launch]:
    """``outputs = function(*inputs)`` of every problem of a group from :func:`plan_elementwise_group`."""
    arguments = {
        **group.arguments(),
        "FUNCTION": function,
        "DTYPE": arithmetic_type(group.tensors),
    }
    return [Launch(grouped_elementwise_kernel, (group.tiles,), arguments, num_warps, 1, group)]


grouped_elementwise = Template(_grouped_elementwise)


def elementwise_reference(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> None:
    """The same in torch, with a function of tensors."""
    results = function(*inputs)
    for out, result in zip(outputs, results, strict=False):
        out.copy_(result)
