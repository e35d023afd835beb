"""Moments of all layers in one launch: ``AᵀA`` of many activations, or all weight gradients ``vᵀ [x, 1]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .gemm import blocks
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
    launch,
    matrix,
    padded_operand,
    require,
    rows_of,
)
from .moments import finish_moment, moment_part, moment_position, sum_parts, workspace_tile
from .settings import (
    MatrixSettings,
    Precision,
    Shape,
    matrix_default,
    short_steps,
    tile_counts,
)
from .syrk import cross_moment_reference, require_square, syrk_reference, workspace

Settings = MatrixSettings


@triton.jit
def grouped_moment_kernel(
    table, workspace, alpha: tl.float64,
    SYMMETRIC: tl.constexpr, SPLIT: tl.constexpr, ONES: tl.constexpr,
    COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile of some problem, and a part of its batch."""
    row, index = find_problem(table, tl.program_id(0), COUNT, PADDED, WIDTH)
    part = tl.program_id(1)
    M = tl.load(row + 1).to(tl.int32)
    N = tl.load(row + 2).to(tl.int32)
    samples = tl.load(row + 3).to(tl.int32)
    row_tile, column_tile = moment_position(index, M, N, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP)
    a, b = read_operands(row, TYPES, UNITS, ALIGNED)
    total = moment_part(
        a, b, row_tile, column_tile, samples, part, tl.num_programs(1), SYMMETRIC and ONES, ONES,
        BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
    )  # fmt: skip
    if SPLIT:
        at = workspace_tile(workspace, part, tl.program_id(0), tl.num_programs(0), BLOCK_M, BLOCK_N)
        tl.store(at, total)
    else:
        out = read_matrices(row, 0, 1, TYPES, UNITS, ALIGNED)[0]
        finish_moment(total, row_tile, column_tile, M, N, out, alpha, SYMMETRIC, BLOCK_M, BLOCK_N)


@triton.jit
def finish_grouped_moment_kernel(
    table, workspace, parts, alpha: tl.float64, SYMMETRIC: tl.constexpr,
    COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """One program a tile of some problem: the parts of its sum in order, then finished."""
    row, index = find_problem(table, tl.program_id(0), COUNT, PADDED, WIDTH)
    M = tl.load(row + 1).to(tl.int32)
    N = tl.load(row + 2).to(tl.int32)
    row_tile, column_tile = moment_position(index, M, N, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP)
    total = sum_parts(
        workspace, parts, tl.program_id(0), tl.num_programs(0), BLOCK_M, BLOCK_N, ACCUMULATOR
    )
    out = read_matrices(row, 0, 1, TYPES, UNITS, ALIGNED)[0]
    finish_moment(total, row_tile, column_tile, M, N, out, alpha, SYMMETRIC, BLOCK_M, BLOCK_N)


@dataclass(frozen=True)
class Moment:
    """The tensors of one moment, as in :func:`~.syrk.syrk` (``b`` None) or :func:`~.syrk.cross_moment`."""

    a: Tensor
    b: Tensor | None
    out: Tensor


@dataclass(frozen=True)
class Group:
    """Moments in a table in device memory, all symmetric or all not, cut into tiles of given settings."""

    moments: tuple[Moment, ...]
    symmetric: bool
    homogeneous: bool
    precision: Precision
    settings: Settings
    table: Table


def plan_moments(
    moments: Sequence[Moment],
    *,
    homogeneous: bool = False,
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> Group:
    """Tabulate moments once, for any number of launches.

    Raises InternalError if shapes do not fit, if types or optional tensors differ between the moments, or if
    tiles of symmetric ones are not square.
    """
    moments = [Moment(rows_of(m.a), None if m.b is None else rows_of(m.b), m.out) for m in moments]
    require_alike(moments)
    symmetric = moments[0].b is None
    given = settings
    if settings is None:
        settings = default_settings([_shape(m, homogeneous) for m in moments], moments, precision)
    if symmetric:
        require_square(settings)
    table = tabulate([_item(m, homogeneous, settings) for m in moments])
    if given is None and not symmetric and not any(table.arguments["ALIGNED"]):
        # Every element of two operands has an address of its own then: 4 warps ran out of registers.
        settings = short_steps(settings, moments[0].a.dtype, precision)
    return Group(tuple(moments), symmetric, homogeneous, precision, settings, table)


def _shape(moment: Moment, homogeneous: bool) -> Shape:
    """The shape of the result, and how many samples it sums."""
    samples, rows = moment.a.shape
    if moment.b is None:
        return Shape(rows + homogeneous, rows + homogeneous, samples)
    return Shape(rows, moment.b.shape[1] + homogeneous, samples)


def _item(moment: Moment, homogeneous: bool, settings: Settings) -> Item:
    """A moment's row of the table."""
    shape = _shape(moment, homogeneous)
    b = moment.a if moment.b is None else moment.b
    require("b", b, shape.inner, b.shape[1])
    require("out", moment.out, shape.rows, shape.columns)
    return Item(
        shape.rows,
        shape.columns,
        shape.inner,
        tile_counts(shape, settings, moment.b is None),
        (padded_operand(moment.a.mT), padded_operand(b.mT)),
        (matrix(moment.out),),
    )


@Template
def grouped_moments(group: Group, *, alpha: float = 1.0) -> list[Launch]:
    """Every moment of the group as :func:`~.syrk.syrk` or :func:`~.syrk.cross_moment` computes it."""
    settings, first = group.settings, group.moments[0]
    numbers = arithmetic([first.a, first.a if first.b is None else first.b], group.precision)
    split = settings.split > 1
    sizes = blocks(settings)
    block_k = sizes.pop("BLOCK_K")
    finish = {
        "workspace": workspace(group.table.tiles, settings, first.a) if split else None,
        "alpha": alpha,
        "SYMMETRIC": group.symmetric,
        "ACCUMULATOR": numbers["ACCUMULATOR"],
        **group.table.arguments,
        **sizes,
    }
    tiles = group.table.tiles
    found = [
        launch(
            grouped_moment_kernel,
            (tiles, settings.split),
            settings,
            group,
            **finish,
            SPLIT=split,
            ONES=group.homogeneous,
            BLOCK_K=block_k,
            DTYPE=numbers["DTYPE"],
            PRECISION=numbers["PRECISION"],
        )
    ]
    if split:
        kernel = finish_grouped_moment_kernel
        found.append(launch(kernel, (tiles,), settings, group, **finish, parts=settings.split))
    return found


def grouped_moments_reference(group: Group, *, alpha: float = 1.0) -> None:
    """:func:`grouped_moments` in plain torch, one after the other."""
    for m in group.moments:
        if m.b is None:
            syrk_reference(m.a, m.out, alpha=alpha, homogeneous=group.homogeneous)
        else:
            cross_moment_reference(m.a, m.b, m.out, alpha=alpha, homogeneous=group.homogeneous)


def default_settings(
    shapes: Sequence[Shape], moments: Sequence[Moment], precision: Precision
) -> Settings:
    """Settings for a group, as for its largest result computed as often as all results together hold it."""
    largest = max(shapes, key=lambda shape: shape.rows * shape.columns)
    whole = sum(shape.rows * shape.columns for shape in shapes)
    batch = max(1, whole // (largest.rows * largest.columns))
    triangle = moments[0].b is None
    dtype: torch.dtype = moments[0].a.dtype
    return matrix_default(
        largest._replace(batch=batch), dtype, precision, triangle=triangle, split=True
    )
