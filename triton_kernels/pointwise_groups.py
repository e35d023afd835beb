"""Elementwise problems of different sizes in one launch: their table in device memory.

Row ``p`` of the table is ``first tile, M, N, slot``, then (pointer, row stride, column stride) of each input
and output of problem p. The programs of a launch are the tiles of all problems in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gncompile.errors import InternalError, expected_got

from .grouping import find_problem, place_layout, read_matrix, table_arguments
from .language import tl, triton
from .launches import kinds, matrix
from .tiles import Matrix

MATRICES = tl.constexpr(4)  # column of the table where the matrices begin


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
    """How each input is broadcast, in every problem."""
    layouts: tuple[tuple[Any, int, bool], ...]
    """Type, contiguous dimension and alignment of each input and output, in every problem."""
    whole: bool
    """Whether every N is divisible by 16, so that masks do not cut vectors."""
    block_m: int
    block_n: int
    slots: tuple[int, ...]
    """First tile of each slot, and the number of tiles at the end."""
    tensors: tuple[Tensor, ...]

    def arguments(self) -> dict[str, Any]:
        """What the kernels of every group take."""
        return {
            **table_arguments(self.table, self.layouts),
            "WHOLE": self.whole,
            "KINDS": self.kinds,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
        }


@triton.jit
def group_tile(
    table, COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """This program's row of the table, its rows and columns, and the size of its problem."""
    entry, index = find_problem(table, tl.program_id(0), COUNT, PADDED, WIDTH)
    row_count = tl.load(entry + 1).to(tl.int32)
    column_count = tl.load(entry + 2).to(tl.int32)
    if WHOLE:
        column_count = tl.multiple_of(column_count, 16)
    column_tiles = tl.cdiv(column_count, BLOCK_N)
    rows = index // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = index % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    return entry, rows, columns, row_count, column_count


@triton.jit
def group_matrices(
    entry, FIRST: tl.constexpr, COUNT: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Matrices ``FIRST … FIRST + COUNT - 1`` of the problem."""
    found = ()
    for i in tl.static_range(FIRST, FIRST + COUNT):
        at = read_matrix(entry, MATRICES + 3 * i, TYPES[i], UNITS[i], ALIGNED[i])
        found = found + (Matrix(*at),)  # type: ignore[assignment]
    return found


def plan_group(problems: Sequence[Problem], block_m: int, block_n: int) -> Group:
    """The table of ``problems``, ordered by slot; otherwise in the order given.

    Raises:
        InternalError: The problems differ in number, kinds or types of matrices, or one has no element or
            more than two dimensions.
    """
    ordered = sorted(problems, key=lambda problem: problem.slot)
    entries: list[list[int]] = []
    members: list[list[Matrix]] = []
    signatures: set[tuple[str, ...]] = set()
    slots: list[int] = []
    tiles = 0
    for problem in ordered:
        tensors, rows, columns = _matrices(problem)
        signatures.add(kinds(tensors, rows, columns))
        members.append([matrix(tensor) for tensor in tensors])
        slots += [tiles] * (problem.slot + 1 - len(slots))
        numbers = [(m.pointer.data_ptr(), m.row, m.column) for m in members[-1]]
        entries.append([tiles, rows, columns, problem.slot, *sum(numbers, ())])
        tiles += triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n)
    if len(signatures) != 1:
        raise InternalError(
            "the problems of a group must be alike in number and kinds of matrices",
            where="; ".join(sorted(map(str, signatures))) or "no problem",
        )
    return Group(
        table=torch.tensor(entries, dtype=torch.int64).to(problems[0].inputs[0].device),
        tiles=tiles,
        kinds=signatures.pop()[: len(problems[0].inputs)],
        layouts=tuple(place_layout(place) for place in zip(*members, strict=True)),
        whole=all(entry[2] % 16 == 0 for entry in entries),
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
            "a problem of a group must have matrices of one shape, and elements",
            where=expected_got(
                list(shape), [list(t.shape) for t in (*problem.inputs, *problem.outputs)]
            ),
        )
    rows, columns = (1,) * (2 - len(shape)) + tuple(shape)
    matrices = [
        tensor.as_strided((rows, columns), (0, 0, *tensor.stride())[-2:])
        if tensor.shape == shape
        else tensor
        for tensor in (*problem.inputs, *problem.outputs)
    ]
    return matrices, rows, columns
