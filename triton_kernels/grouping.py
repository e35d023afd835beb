"""Independent problems of different sizes in one launch: their table in device memory.

Row ``p`` of the table is ``first tile, M, N, K``, then the two operands (pointer, outer stride, inner stride,
readable, size), then the other matrices of problem p (pointer, row stride, column stride), in one order for
all problems. What the problems share, types and contiguous dimensions, is known at compile time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gncompile.errors import InternalError

from .language import tl, triton
from .launches import TYPES
from .tiles import Matrix, Operand

OPERANDS = tl.constexpr(4)  # column of the table where the operands begin
MATRICES = tl.constexpr(14)  # and the matrices


@triton.jit
def find_problem(table, index, COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr):
    """The row of the table with tile ``index``, and that tile's number within its problem."""
    problems = tl.arange(0, PADDED)
    first = tl.load(table + problems * WIDTH, mask=problems < COUNT, other=2**31 - 1)
    problem = tl.sum((first <= index).to(tl.int32), 0) - 1
    row = table + problem * WIDTH
    return row, index - tl.load(row).to(tl.int32)


@triton.jit
def read_pointer(row, at, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A pointer; ``ALIGNED`` promises 16 bytes, as the launcher sees for a pointer that it passes itself."""
    pointer = tl.load(row + at).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def read_stride(row, at, IS_UNIT: tl.constexpr, ALIGNED: tl.constexpr):
    """A stride; the constant 1 for a contiguous dimension, a multiple of 16 in an aligned matrix."""
    if IS_UNIT:
        stride = 1
    elif ALIGNED:
        stride = tl.multiple_of(tl.load(row + at), 16)
    else:
        stride = tl.load(row + at)
    return stride


@triton.jit
def read_operand(row, at, DTYPE: tl.constexpr, UNIT: tl.constexpr, ALIGNED: tl.constexpr):
    """The operand described from column ``at`` on."""
    readable = tl.load(row + at + 3).to(tl.int32)
    if ALIGNED and UNIT == 0:
        readable = tl.multiple_of(readable, 16)
    return (
        read_pointer(row, at, DTYPE, ALIGNED),
        read_stride(row, at + 1, UNIT == 0, ALIGNED),
        read_stride(row, at + 2, UNIT == 1, ALIGNED),
        0,
        readable,
        tl.load(row + at + 4).to(tl.int32),
    )


@triton.jit
def read_operands(row, TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr):
    """Both operands of the problem."""
    return (
        read_operand(row, OPERANDS, TYPES[0], UNITS[0], ALIGNED[0]),
        read_operand(row, OPERANDS + 5, TYPES[1], UNITS[1], ALIGNED[1]),
    )


@triton.jit
def read_matrix(row, at, DTYPE: tl.constexpr, UNIT: tl.constexpr, ALIGNED: tl.constexpr):
    """The matrix described from column ``at`` on."""
    return (
        read_pointer(row, at, DTYPE, ALIGNED),
        read_stride(row, at + 1, UNIT == 0, ALIGNED),
        read_stride(row, at + 2, UNIT == 1, ALIGNED),
        0,
    )


@triton.jit
def read_matrices(
    row, FIRST: tl.constexpr, COUNT: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Matrices ``FIRST … FIRST + COUNT - 1`` of the problem; in the layouts the two operands come first."""
    found = ()
    for i in tl.static_range(COUNT):
        matrix = read_matrix(
            row, MATRICES + 3 * (FIRST + i),
            TYPES[2 + FIRST + i], UNITS[2 + FIRST + i], ALIGNED[2 + FIRST + i],
        )  # fmt: skip
        found = found + (matrix,)  # type: ignore[assignment]
    return found


@dataclass(frozen=True)
class Item:
    """One problem: sizes, tiles, both operands as ``[outer, inner]``, and the other matrices."""

    rows: int
    columns: int
    inner: int
    tiles: int
    operands: tuple[Operand, Operand]
    matrices: tuple[Matrix, ...]


@dataclass(frozen=True)
class Table:
    """Problems in device memory, and what all of them share; the items keep their tensors alive."""

    values: Tensor
    tiles: int
    items: tuple[Item, ...]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of a grouped kernel that describe the table."""
        places = zip(*((*item.operands, *item.matrices) for item in self.items), strict=True)
        return table_arguments(self.values, [place_layout(place) for place in places])


def table_arguments(table: Tensor, layouts: Sequence[tuple[Any, int, bool]]) -> dict[str, Any]:
    """What every kernel over a table takes: its size, and the layout that each place has in all problems."""
    types, units, aligned = zip(*layouts, strict=True)
    return {
        "table": table,
        "COUNT": len(table),
        "PADDED": triton.next_power_of_2(len(table)),
        "WIDTH": table.shape[1],
        "TYPES": types,
        "UNITS": units,
        "ALIGNED": aligned,
    }


def require_alike(problems: Sequence[Any]) -> None:
    """Raise unless the same tensors are given in every problem, and absent in the others."""
    given = {tuple(_presence(value) for value in vars(problem).values()) for problem in problems}
    if len(given) != 1:
        raise InternalError(
            f"a group of {len(problems)} problems needs the same optional inputs in each"
        )


def _presence(value: Any) -> object:
    """Whether a tensor, or each tensor of a tuple, is given."""
    return tuple(map(_presence, value)) if isinstance(value, tuple) else value is not None


def tabulate(items: Sequence[Item]) -> Table:
    """The table of ``items``, which have the same matrices each, on their device."""
    rows, first = [], 0
    for item in items:
        row = [first, item.rows, item.columns, item.inner]
        for operand in item.operands:
            row += [operand.pointer.data_ptr(), operand.outer, operand.inner]
            row += [operand.readable, operand.size]
        for matrix in item.matrices:
            row += [matrix.pointer.data_ptr(), matrix.row, matrix.column]
        rows.append(row)
        first += item.tiles
    device = items[0].operands[0].pointer.device
    return Table(torch.tensor(rows, dtype=torch.int64).to(device), first, tuple(items))


def place_layout(place: Sequence[Operand | Matrix]) -> tuple[Any, int, bool]:
    """Type, contiguous dimension (-1: none) and alignment that one matrix has in every problem."""
    dtypes = {matrix.pointer.dtype for matrix in place}
    if len(dtypes) != 1:
        raise InternalError(f"a group mixes the types {sorted(map(str, dtypes))} in one place")
    unit = next((d for d in (1, 0) if all(matrix[1 + d] == 1 for matrix in place)), -1)
    numbers = [matrix.pointer.data_ptr() for matrix in place]
    numbers += [matrix[1 + d] for matrix in place for d in (0, 1) if d != unit]
    numbers += [matrix.readable for matrix in place if isinstance(matrix, Operand) and unit == 0]
    return TYPES[dtypes.pop()], unit, all(number % 16 == 0 for number in numbers)
