"""Moments of all layers in one launch: ``AᵀA`` of many activations, or all weight gradients ``vᵀ [x, 1]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    Number,
    Template,
    arithmetic,
    averaging,
    common_kinds,
    factor,
    launch,
    matrix,
    padded_operand,
    require,
    transposed,
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
def finish_problem(
    total, row, row_tile, column_tile, M, N, alpha, alpha_tensor, beta, beta_tensor,
    ADD: tl.constexpr, AVERAGE: tl.constexpr, SYMMETRIC: tl.constexpr,
    PROLOGUE_KINDS: tl.constexpr, EPILOGUE: tl.constexpr, KINDS: tl.constexpr, STORED: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Finish a tile with the matrices of its problem; the table has them as :func:`_item` wrote them."""
    out = read_matrices(row, 0, 1, TYPES, UNITS, ALIGNED)[0]
    first = 1 + len(PROLOGUE_KINDS)
    inputs = read_matrices(row, first, len(KINDS), TYPES, UNITS, ALIGNED)
    outputs = read_matrices(row, first + len(KINDS), len(STORED), TYPES, UNITS, ALIGNED)
    add = None
    if ADD:
        add = out
    finish_moment(
        total, row_tile, column_tile, M, N, out, outputs, inputs,
        alpha, alpha_tensor, add, beta, beta_tensor, AVERAGE, SYMMETRIC,
        EPILOGUE, KINDS, STORED, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def grouped_moment_kernel(
    table, workspace, alpha: tl.float64, alpha_tensor, beta: tl.float64, beta_tensor,
    ADD: tl.constexpr, AVERAGE: tl.constexpr, SYMMETRIC: tl.constexpr, SPLIT: tl.constexpr,
    PROLOGUE: tl.constexpr, PROLOGUE_KINDS: tl.constexpr, ONES: tl.constexpr,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, STORED: tl.constexpr,
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
    inputs = read_matrices(row, 1, len(PROLOGUE_KINDS), TYPES, UNITS, ALIGNED)
    if SYMMETRIC:
        total = moment_part(
            a, inputs, b, inputs, row_tile, column_tile, samples, part, tl.num_programs(1),
            PROLOGUE, PROLOGUE_KINDS, ONES, PROLOGUE, PROLOGUE_KINDS, ONES,
            BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
        )  # fmt: skip
    else:
        total = moment_part(
            a, (), b, inputs, row_tile, column_tile, samples, part, tl.num_programs(1),
            None, (), False, PROLOGUE, PROLOGUE_KINDS, ONES,
            BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
        )  # fmt: skip
    if SPLIT:
        at = workspace_tile(workspace, part, tl.program_id(0), tl.num_programs(0), BLOCK_M, BLOCK_N)
        tl.store(at, total)
    else:
        finish_problem(
            total, row, row_tile, column_tile, M, N, alpha, alpha_tensor, beta, beta_tensor,
            ADD, AVERAGE, SYMMETRIC, PROLOGUE_KINDS, EPILOGUE, KINDS, STORED,
            TYPES, UNITS, ALIGNED, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def finish_grouped_moment_kernel(
    table, workspace, parts, alpha: tl.float64, alpha_tensor, beta: tl.float64, beta_tensor,
    ADD: tl.constexpr, AVERAGE: tl.constexpr, SYMMETRIC: tl.constexpr,
    PROLOGUE_KINDS: tl.constexpr, EPILOGUE: tl.constexpr, KINDS: tl.constexpr, STORED: tl.constexpr,
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
    finish_problem(
        total, row, row_tile, column_tile, M, N, alpha, alpha_tensor, beta, beta_tensor,
        ADD, AVERAGE, SYMMETRIC, PROLOGUE_KINDS, EPILOGUE, KINDS, STORED,
        TYPES, UNITS, ALIGNED, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """The tensors of one moment, as in :func:`~.syrk.syrk` (``b`` None) or :func:`~.syrk.cross_moment`."""

    a: Tensor
    b: Tensor | None
    out: Tensor
    prologue_inputs: tuple[Tensor, ...] = ()
    epilogue_inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor | None, ...] = ()


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
    """A moment's row of the table: out, prologue inputs as b's tiles see them, epilogue inputs, outputs."""
    shape = _shape(moment, homogeneous)
    b = moment.a if moment.b is None else moment.b
    require("b", b, shape.inner, b.shape[1])
    stored = [tensor for tensor in moment.outputs if tensor is not None]
    for tensor in (moment.out, *stored):
        require("out or an output", tensor, shape.rows, shape.columns)
    turned = transposed(moment.prologue_inputs)
    a_inputs = turned if moment.b is None else []
    return Item(
        shape.rows,
        shape.columns,
        shape.inner,
        tile_counts(shape, settings, moment.b is None),
        (padded_operand(moment.a.mT, a_inputs), padded_operand(b.mT, turned)),
        tuple(matrix(t) for t in (moment.out, *turned, *moment.epilogue_inputs, *stored)),
    )


@Template
def grouped_moments(
    group: Group,
    *,
    average: Number | None = None,
    alpha: Number = 1.0,
    prologue: Any = None,
    epilogue: Any = None,
) -> list[Launch]:
    """Every moment of the group as :func:`~.syrk.syrk` or :func:`~.syrk.cross_moment` computes it.

    The average's weight, ``α``, prologue and epilogue are common; symmetric moments take no epilogue.
    """
    moments, settings = group.moments, group.settings
    first = moments[0]
    b = first.a if first.b is None else first.b
    numbers = arithmetic([first.a, b], group.precision)
    alpha, alpha_tensor = factor(alpha)
    scale, beta, beta_tensor = averaging(average)
    split = settings.split > 1
    sizes = blocks(settings)
    block_k = sizes.pop("BLOCK_K")
    finish = {
        "workspace": workspace(group.table.tiles, settings, first.a) if split else None,
        "alpha": alpha * scale,
        "alpha_tensor": alpha_tensor,
        "beta": beta,
        "beta_tensor": beta_tensor,
        "ADD": average is not None,
        "AVERAGE": beta_tensor is not None,
        "SYMMETRIC": group.symmetric,
        "PROLOGUE_KINDS": common_kinds(
            [
                (transposed(m.prologue_inputs), *(m.a if m.b is None else m.b).mT.shape)
                for m in moments
            ]
        ),
        "EPILOGUE": epilogue,
        "KINDS": common_kinds([(m.epilogue_inputs, *m.out.shape) for m in moments]),
        "STORED": tuple(i for i, t in enumerate(first.outputs, start=1) if t is not None),
        "ACCUMULATOR": numbers["ACCUMULATOR"],
        **group.table.arguments,
        **sizes,
    }
    found = [
        launch(
            grouped_moment_kernel,
            (group.table.tiles, settings.split),
            settings,
            group,
            **finish,
            SPLIT=split,
            PROLOGUE=prologue,
            ONES=group.homogeneous,
            BLOCK_K=block_k,
            DTYPE=numbers["DTYPE"],
            PRECISION=numbers["PRECISION"],
        )
    ]
    if split:
        tiles = (group.table.tiles,)
        last = launch(
            finish_grouped_moment_kernel, tiles, settings, group, **finish, parts=settings.split
        )
        found.append(last)
    return found


def grouped_moments_reference(
    group: Group,
    *,
    average: Number | None = None,
    alpha: Number = 1.0,
    prologue: Callable[..., tuple[Tensor, ...]] | None = None,
    epilogue: Callable[..., tuple[Tensor, ...]] | None = None,
) -> None:
    """:func:`grouped_moments` in plain torch, one after the other."""
    for m in group.moments:
        options: dict[str, Any] = {
            "average": average,
            "alpha": alpha,
            "homogeneous": group.homogeneous,
            "prologue": prologue,
            "prologue_inputs": m.prologue_inputs,
        }
        if m.b is None:
            syrk_reference(m.a, m.out, **options)
        else:
            options |= {"epilogue_inputs": m.epilogue_inputs, "outputs": m.outputs}
            cross_moment_reference(m.a, m.b, m.out, epilogue=epilogue, **options)


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
