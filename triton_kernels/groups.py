"""Many problems of different sizes in one launch: a table in device memory says which tile belongs to which.

The programs of a launch are the tiles of all problems in a row. A table of int64 numbers, made once and used by
every launch on the same tensors, has one line a problem::

    first tile │ rows │ columns │ slot │ address, row stride, column stride of operand 0 │ … of operand 1 │ …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gncompile.errors import InternalError, expected_got, message

from .language import tl, triton
from .launches import TYPES, kinds
from .tiles import Matrix

HEAD = tl.constexpr(4)
"""Numbers of a line before those of the operands."""


class Problem(NamedTuple):
    """One member of a group: operands that are read, those that are written, and where a sum is added."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor] = ()
    slot: int = 0


@dataclass(frozen=True)
class Group:
    """A planned group. It keeps its tensors alive, for the table holds bare addresses."""

    table: Tensor
    tiles: int
    kinds: tuple[str, ...]
    types: tuple[Any, ...]
    layout: str
    block_m: int
    block_n: int
    slots: tuple[int, ...]
    """First tile of each slot, and the number of tiles at the end."""
    tensors: tuple[Tensor, ...]

    @property
    def problems(self) -> int:
        return len(self.table)

    def arguments(self) -> dict[str, Any]:
        """What the kernels of every group take."""
        return {
            "table": self.table,
            "problem_count": self.problems,
            "KINDS": self.kinds,
            "TYPES": self.types,
            "LAYOUT": self.layout,
            "PROBLEMS": triton.next_power_of_2(self.problems),
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
        }


@triton.jit
def group_tile(
    table, problem_count, OPERANDS: tl.constexpr, PROBLEMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The line of this program's problem, its rows and columns, and the problem's size."""
    WIDTH: tl.constexpr = HEAD + 3 * OPERANDS
    tile = tl.program_id(0)
    lines = tl.arange(0, PROBLEMS)
    firsts = tl.load(table + lines * WIDTH, mask=lines < problem_count, other=1 << 62)
    line = table + (tl.sum((firsts <= tile).to(tl.int32), axis=0) - 1) * WIDTH
    index = tile - tl.load(line).to(tl.int32)
    row_count = tl.load(line + 1).to(tl.int32)
    column_count = tl.load(line + 2).to(tl.int32)
    column_tiles = tl.cdiv(column_count, BLOCK_N)
    rows = index // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = index % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    return line, rows, columns, row_count, column_count


@triton.jit
def group_operand(line, i: tl.constexpr, TYPE: tl.constexpr, LAYOUT: tl.constexpr):
    """Operand ``i`` of a problem. ``LAYOUT`` tells the compiler what it cannot know of loaded numbers."""
    at = line + HEAD + 3 * i
    address = tl.load(at)
    row = tl.load(at + 1)
    if LAYOUT == "aligned":
        pointer = tl.multiple_of(address, 16).to(tl.pointer_type(TYPE))
        found = Matrix(pointer, tl.multiple_of(row, 16), 1, 0)
    elif LAYOUT == "rows":
        found = Matrix(address.to(tl.pointer_type(TYPE)), row, 1, 0)
    else:
        found = Matrix(address.to(tl.pointer_type(TYPE)), row, tl.load(at + 2), 0)
    return found


@triton.jit
def group_operands(
    line, FIRST: tl.constexpr, COUNT: tl.constexpr, TYPES: tl.constexpr, LAYOUT: tl.constexpr
):
    """Operands ``FIRST`` to ``FIRST + COUNT`` of a problem."""
    found = ()
    for i in tl.static_range(COUNT):
        found = found + (group_operand(line, FIRST + i, TYPES[FIRST + i], LAYOUT),)
    return found


def plan_group(problems: Sequence[Problem], block_m: int, block_n: int) -> Group:
    """The table of ``problems``, ordered by slot; otherwise in the order given.

    Raises:
        InternalError: The problems differ in number, kinds or types of operands, or one has no element or
            more than two dimensions.
    """
    ordered = sorted(problems, key=lambda problem: problem.slot)
    lines: list[list[int]] = []
    signatures: dict[tuple[Any, ...], None] = {}
    slots: list[int] = []
    tiles = 0
    for problem in ordered:
        matrices, rows, columns = _matrices(problem)
        operand_kinds = kinds(matrices, rows, columns)
        signatures[(operand_kinds, tuple(t.dtype for t in matrices))] = None
        slots += [tiles] * (problem.slot + 1 - len(slots))
        line = [tiles, rows, columns, problem.slot]
        for tensor in matrices:
            strides = (0, 0, *tensor.stride())[-2:]
            line += [tensor.data_ptr(), *strides]
        lines.append(line)
        tiles += triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n)
    if len(signatures) != 1:
        raise InternalError(
            message(
                "the problems of a group differ in kinds or types of operands, or there is none",
                where="; ".join(map(str, signatures)),
            )
        )
    ((operand_kinds, dtypes),) = signatures
    device = problems[0].inputs[0].device
    return Group(
        table=torch.tensor(lines, dtype=torch.int64, device=device),
        tiles=tiles,
        kinds=operand_kinds[: len(problems[0].inputs)],
        types=tuple(TYPES[dtype] for dtype in dtypes),
        layout=_layout(lines, operand_kinds, dtypes),
        block_m=block_m,
        block_n=block_n,
        slots=(*slots, tiles),
        tensors=tuple(t for problem in ordered for t in (*problem.inputs, *problem.outputs)),
    )


def _matrices(problem: Problem) -> tuple[list[Tensor], int, int]:
    """The operands, those of full shape as matrices, and that shape."""
    shape = max((*problem.outputs, *problem.inputs), key=lambda t: (t.numel(), t.dim())).shape
    if len(shape) > 2 or 0 in shape or any(t.shape != shape for t in problem.outputs):
        raise InternalError(
            message(
                "a problem of a group must have matrices of one shape, and elements",
                where=expected_got(
                    list(shape), [list(t.shape) for t in (*problem.inputs, *problem.outputs)]
                ),
            )
        )
    rows, columns = (1,) * (2 - len(shape)) + tuple(shape)
    matrices = [
        tensor.as_strided((rows, columns), (0, 0, *tensor.stride())[-2:])
        if tensor.shape == shape
        else tensor
        for tensor in (*problem.inputs, *problem.outputs)
    ]
    return matrices, rows, columns


def _layout(lines: list[list[int]], operand_kinds: tuple[str, ...], dtypes: Any) -> str:
    """``aligned`` if all matrices and rows allow whole vectors, ``rows`` if their columns are contiguous."""
    unit = aligned = True
    for line in lines:
        for i, (kind, dtype) in enumerate(zip(operand_kinds, dtypes, strict=True)):
            if kind in ("scalar", "column"):
                continue
            address, row, column = line[HEAD.value + 3 * i : HEAD.value + 3 * i + 3]
            unit &= column == 1 or line[2] == 1
            aligned &= address % 16 == 0 and (row % 16 == 0 or line[1] == 1)
    return "aligned" if unit and aligned else "rows" if unit else "any"
