"""Moments over a batch: ``AᵀA``, symmetric, and ``AᵀB``, with running averages kept in place.

A symmetric moment computes tiles on and below the diagonal and stores each also mirrored. Tiles are square:
then exactly one program reads and writes an element, as an average in place needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gncompile.errors import InternalError, message

from .language import tl, triton
from .launches import (
    Launch,
    Number,
    Template,
    arithmetic,
    averaging,
    factor,
    kinds,
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
    accumulator,
    matrix_default,
    matrix_space,
    tile_counts,
)

Settings = MatrixSettings


@triton.jit
def moment_kernel(
    a, a_inputs, b, b_inputs, out, outputs, inputs, workspace, M, N, SAMPLES,
    alpha: tl.float64, alpha_tensor, add, beta: tl.float64, beta_tensor,
    AVERAGE: tl.constexpr, SYMMETRIC: tl.constexpr, SPLIT: tl.constexpr,
    PROLOGUE_A: tl.constexpr, KINDS_A: tl.constexpr, ONES_A: tl.constexpr,
    PROLOGUE_B: tl.constexpr, KINDS_B: tl.constexpr, ONES_B: tl.constexpr,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, STORED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile and part of the batch; with one part only, it also finishes the tile."""
    index = tl.program_id(0)
    part = tl.program_id(1)
    row_tile, column_tile = moment_position(index, M, N, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP)
    total = moment_part(
        a, a_inputs, b, b_inputs, row_tile, column_tile, SAMPLES, part, tl.num_programs(1),
        PROLOGUE_A, KINDS_A, ONES_A, PROLOGUE_B, KINDS_B, ONES_B,
        BLOCK_M, BLOCK_N, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
    )  # fmt: skip
    if SPLIT:
        tiles = tl.num_programs(0)
        tl.store(workspace_tile(workspace, part, index, tiles, BLOCK_M, BLOCK_N), total)
    else:
        finish_moment(
            total, row_tile, column_tile, M, N, out, outputs, inputs,
            alpha, alpha_tensor, add, beta, beta_tensor, AVERAGE, SYMMETRIC,
            EPILOGUE, KINDS, STORED, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def finish_moment_kernel(
    out, outputs, inputs, workspace, parts, M, N,
    alpha: tl.float64, alpha_tensor, add, beta: tl.float64, beta_tensor,
    AVERAGE: tl.constexpr, SYMMETRIC: tl.constexpr,
    EPILOGUE: tl.constexpr, KINDS: tl.constexpr, STORED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """One program a tile: the parts of its sum, then what a single part would have been finished with."""
    index = tl.program_id(0)
    row_tile, column_tile = moment_position(index, M, N, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP)
    tiles = tl.num_programs(0)
    total = sum_parts(workspace, parts, index, tiles, BLOCK_M, BLOCK_N, ACCUMULATOR)
    finish_moment(
        total, row_tile, column_tile, M, N, out, outputs, inputs,
        alpha, alpha_tensor, add, beta, beta_tensor, AVERAGE, SYMMETRIC,
        EPILOGUE, KINDS, STORED, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@Template
def syrk(
    a: Tensor,
    out: Tensor,
    *,
    average: Number | None = None,
    alpha: Number = 1.0,
    homogeneous: bool = False,
    prologue: Any = None,
    prologue_inputs: Sequence[Tensor] = (),
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out ← w out + (1-w) α φ(A)ᵀ φ(A)``, symmetric bit by bit; without ``average`` just ``α φ(A)ᵀ φ(A)``.

    Args:
        a: ``[N, d]``, any strides.
        out: ``[d, d]``, or ``[d+1, d+1]`` if ``homogeneous``: a 1 is then appended to every row of φ(A).
            Assumed symmetric if averaged.
        average: the weight w, a number or a 0-d tensor read on the device.
        alpha: likewise; ``1/N`` makes a mean.
        prologue: φ, a function ``f(tile, t0, …) -> (tile,)``; its inputs are ``[N, d]``, ``[d]`` or 0-d.

    Raises InternalError if shapes or settings do not fit.
    """
    return moment_launches(
        a, a, out, True, average=average, alpha=alpha, homogeneous=homogeneous,
        prologues=((prologue, prologue_inputs), (prologue, prologue_inputs)),
        epilogue=None, epilogue_inputs=(), outputs=(), precision=precision, settings=settings,
    )  # fmt: skip


@Template
def cross_moment(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    average: Number | None = None,
    alpha: Number = 1.0,
    homogeneous: bool = False,
    prologue: Any = None,
    prologue_inputs: Sequence[Tensor] = (),
    epilogue: Any = None,
    epilogue_inputs: Sequence[Tensor] = (),
    outputs: Sequence[Tensor | None] = (),
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out ← w out + (1-w) α Aᵀ [φ(B), 1]``; weight gradients ``(1/N) vᵀ [x, 1]`` are one of these.

    Args:
        a, b: ``[N, d]`` and ``[N, e]``; ``out`` is ``[d, e]``, or ``[d, e+1]`` if ``homogeneous``.
        prologue: φ, as in :func:`syrk`, applied to ``b`` only.
        epilogue, epilogue_inputs, outputs: as in :func:`~.gemm.gemm`, after the average.

    The rest as in :func:`syrk`.
    """
    return moment_launches(
        a, b, out, False, average=average, alpha=alpha, homogeneous=homogeneous,
        prologues=((None, ()), (prologue, prologue_inputs)),
        epilogue=epilogue, epilogue_inputs=epilogue_inputs, outputs=outputs,
        precision=precision, settings=settings,
    )  # fmt: skip


def moment_launches(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    symmetric: bool,
    *,
    average: Number | None,
    alpha: Number,
    homogeneous: bool,
    prologues: tuple[tuple[Any, Sequence[Tensor]], tuple[Any, Sequence[Tensor]]],
    epilogue: Any,
    epilogue_inputs: Sequence[Tensor],
    outputs: Sequence[Tensor | None],
    precision: Precision,
    settings: Settings | None,
) -> list[Launch]:
    """The launches of :func:`syrk` and :func:`cross_moment`; if split, the first makes the parts."""
    samples = a.shape[0]
    rows, columns = a.shape[1] + (homogeneous and symmetric), b.shape[1] + homogeneous
    require("b", b, samples, b.shape[1])
    require("out", out, rows, columns)
    shape = Shape(rows, columns, samples)
    if settings is None:
        settings = (syrk_settings if symmetric else cross_settings)(shape, a.dtype, precision)
    if symmetric:
        require_square(settings)
    stored = [(i, tensor) for i, tensor in enumerate(outputs, start=1) if tensor is not None]
    numbers = arithmetic([a, b], precision)
    alpha, alpha_tensor = factor(alpha)
    scale, beta, beta_tensor = averaging(average)
    tiles = tile_counts(shape, settings, symmetric)
    finish = {
        "out": matrix(out),
        "outputs": tuple(matrix(tensor) for _, tensor in stored),
        "inputs": tuple(matrix(tensor) for tensor in epilogue_inputs),
        "workspace": workspace(tiles, settings, a) if settings.split > 1 else None,
        "M": rows,
        "N": columns,
        "alpha": alpha * scale,
        "alpha_tensor": alpha_tensor,
        "add": None if average is None else matrix(out),
        "beta": beta,
        "beta_tensor": beta_tensor,
        "AVERAGE": beta_tensor is not None,
        "SYMMETRIC": symmetric,
        "EPILOGUE": epilogue,
        "KINDS": kinds(epilogue_inputs, rows, columns),
        "STORED": tuple(i for i, _ in stored),
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
        "GROUP": settings.group,
        "ACCUMULATOR": numbers["ACCUMULATOR"],
    }
    sides: dict[str, Any] = {}
    for side, tensor, (prologue, given) in zip("ab", (a, b), prologues, strict=True):
        turned = transposed(given)
        sides[side] = padded_operand(tensor.mT, turned)
        sides[f"{side}_inputs"] = tuple(matrix(each) for each in turned)
        sides[f"PROLOGUE_{side.upper()}"] = prologue
        sides[f"KINDS_{side.upper()}"] = kinds(turned, tensor.shape[1], samples)
    found = [
        launch(
            moment_kernel,
            (tiles, settings.split),
            settings,
            **finish,
            **sides,
            SAMPLES=samples,
            SPLIT=settings.split > 1,
            ONES_A=homogeneous and symmetric,
            ONES_B=homogeneous,
            BLOCK_K=settings.block_k,
            DTYPE=numbers["DTYPE"],
            PRECISION=numbers["PRECISION"],
        )
    ]
    if settings.split > 1:
        found.append(
            launch(finish_moment_kernel, (tiles,), settings, **finish, parts=settings.split)
        )
    return found


def workspace(tiles: int, settings: Settings, like: Tensor) -> Tensor:
    """Memory for the parts of ``tiles`` sums."""
    size = settings.split * tiles * settings.block_m * settings.block_n
    return torch.empty(size, dtype=accumulator(like.dtype), device=like.device)


def require_square(settings: Settings) -> None:
    """Raise unless tiles are square: others overlap across the diagonal, and an average would apply twice."""
    if settings.block_m != settings.block_n:
        raise InternalError(
            message(
                f"a symmetric product needs square tiles, not {settings.block_m}×{settings.block_n}",
                instead="set block_m = block_n",
            )
        )


Prologue = Callable[..., tuple[Tensor, ...]]


def syrk_reference(
    a: Tensor,
    out: Tensor,
    *,
    average: Number | None = None,
    alpha: Number = 1.0,
    homogeneous: bool = False,
    prologue: Prologue | None = None,
    prologue_inputs: Sequence[Tensor] = (),
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> None:
    """:func:`syrk` in plain torch."""
    values = _extended(a, prologue, prologue_inputs, homogeneous)
    _average(out, alpha * (values.mT @ values), average)


def cross_moment_reference(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    average: Number | None = None,
    alpha: Number = 1.0,
    homogeneous: bool = False,
    prologue: Prologue | None = None,
    prologue_inputs: Sequence[Tensor] = (),
    epilogue: Prologue | None = None,
    epilogue_inputs: Sequence[Tensor] = (),
    outputs: Sequence[Tensor | None] = (),
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> None:
    """:func:`cross_moment` in plain torch."""
    wide = accumulator(a.dtype)
    value = alpha * (a.to(wide).mT @ _extended(b, prologue, prologue_inputs, homogeneous))
    if epilogue is None:
        _average(out, value, average)
        return
    averaged = out.to(wide)
    _average(averaged, value, average)
    results = epilogue(averaged, *(tensor.to(wide) for tensor in epilogue_inputs))
    for tensor, result in zip((out, *outputs), results, strict=False):
        if tensor is not None:
            tensor.copy_(result)


def _extended(
    x: Tensor, prologue: Prologue | None, inputs: Sequence[Tensor], homogeneous: bool
) -> Tensor:
    """``[φ(X), 1]``, φ(X) rounded as an operand is."""
    values = x.to(accumulator(x.dtype))
    if prologue is not None:
        (values,) = prologue(values, *(tensor.to(values.dtype) for tensor in inputs))
        values = values.to(x.dtype).to(accumulator(x.dtype))
    return torch.cat([values, values.new_ones(len(x), 1)], dim=1) if homogeneous else values


def _average(out: Tensor, value: Tensor, weight: Number | None) -> None:
    out.copy_(value if weight is None else weight * out.to(value.dtype) + (1 - weight) * value)


def syrk_settings(shape: Shape, dtype: torch.dtype, precision: Precision) -> Settings:
    """Settings of :func:`syrk` for a shape ``(d, d, N)`` nobody has tuned."""
    return matrix_default(shape, dtype, precision, triangle=True, split=True)


def cross_settings(shape: Shape, dtype: torch.dtype, precision: Precision) -> Settings:
    """Settings of :func:`cross_moment` for a shape ``(d, e, N)`` nobody has tuned."""
    return matrix_default(shape, dtype, precision, split=True)


def syrk_space(shape: Shape, dtype: torch.dtype, precision: Precision) -> tuple[Settings, ...]:
    """Settings of :func:`syrk` worth measuring; the default comes first."""
    return matrix_space(shape, dtype, precision, square=True, split=True)


def cross_space(shape: Shape, dtype: torch.dtype, precision: Precision) -> tuple[Settings, ...]:
    """Settings of :func:`cross_moment` worth measuring; the default comes first."""
    return matrix_space(shape, dtype, precision, split=True)


def syrk_cost(shape: Shape, itemsize: int = 4) -> tuple[int, int]:
    """FLOPs and bytes of :func:`syrk`: half a product, A read once, both triangles written."""
    size, _, samples, _ = shape
    return size * (size + 1) * samples, (samples * size + size * size) * itemsize
