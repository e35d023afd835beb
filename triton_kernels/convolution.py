"""Convolutions as implicit products, by the kernels of :mod:`.gemm` and :mod:`.syrk`; no patch is stored.

==================  ==============================================================  ====================
convolve            ``h[n,t,o] = Σ_ck x[n,c,t·s−p+k·d] W[o,ck]``                      a product by place
convolve_adjoint    ``r[n,i,c] = Σ_ok g[n,o,(i+p−k·d)/s] W[o,ck]``                    a product by point
convolve_gradient   ``∇W[o,ck] = α Σ_nt g[n,t,o] x[n,c,t·s−p+k·d]``                   a cross moment
patch_moment        ``Q = α Σ_nt p pᵀ`` of the patches ``p[n,t,ck]``                  a symmetric moment
==================  ==============================================================  ====================

The adjoint gathers: no two programs add to one point, so results are the same in every run. With a stride s
most taps of a point meet no place: it then takes ``Π s`` times the flops that are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from gncompile.errors import InternalError

from .gemm import blocks, gemm_kernel, joined_rows
from .launches import (
    Input,
    Launch,
    Template,
    arithmetic,
    in_memory,
    kinds,
    launch,
    matrix,
    require,
    rows_of,
)
from .patches import View, Window, adjoint, forward, points
from .random import Draw
from .settings import (
    MatrixSettings,
    Precision,
    Shape,
    cdiv,
    matrix_default,
    matrix_space,
    with_results,
)
from .syrk import Side, moment_of_sides
from .tiles import Matrix, Operand

Settings = MatrixSettings


class Geometry(Protocol):
    """A convolution from ``inputs`` to ``outputs`` channels, in so many ``groups``.

    An output channel sees ``columns`` at every one of the ``places``; a sample has ``size`` inputs.
    """

    @property
    def window(self) -> Window: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def places(self) -> int: ...
    @property
    def size(self) -> int: ...


@Template
def convolve(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    geometry: Geometry,
    *,
    bias: Tensor | None = None,
    epilogue: Any = None,
    epilogue_inputs: Sequence[Input] = (),
    outputs: Sequence[Tensor] = (),
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out = W ⋆ x + b`` for C channels of P points, O channels and T places.

    Args:
        x: ``[.., C·P]``; its rows, those of ``out`` and of all that an epilogue reads and writes are rows of
            one matrix each, by any strides.
        weight: ``[O, C/groups · taps]``.
        out: ``[.., O·T]``; no alias of an operand.
        bias: ``[O]``.
        epilogue: as in :func:`~.gemm.gemm`, of tensors that are broadcast to ``out``.

    Raises InternalError if shapes do not fit.
    """
    g, w = geometry, geometry.window
    channels = g.outputs // g.groups
    require("weight", weight, g.outputs, g.columns)
    row, column = weight.stride()
    return _implicit_product(
        x, (g.inputs, prod(w.size)), forward(w, by_place=True),
        Operand(weight, row, column, channels * row, channels, channels), None,
        out, (g.outputs, g.places), g.columns, g.groups,
        bias, epilogue, epilogue_inputs, outputs, precision, settings,
    )  # fmt: skip


@Template
def convolve_adjoint(
    g: Tensor,
    weight: Tensor,
    out: Tensor,
    geometry: Geometry,
    *,
    epilogue: Any = None,
    epilogue_inputs: Sequence[Input] = (),
    outputs: Sequence[Tensor] = (),
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out = W ∗ g``: vectors ``[.., O·T]`` at the places back to the grid ``[.., C·P]``.

    The rest as in :func:`convolve`.
    """
    of, w = geometry, geometry.window
    channels, taps, each = of.inputs // of.groups, prod(w.kernel), of.outputs // of.groups
    require("weight", weight, of.outputs, of.columns)
    row, column = weight.stride()
    return _implicit_product(
        g, (of.outputs, of.places), adjoint(w, by_place=True),
        # A grid of the taps for every output channel, whose channels are those of the result.
        Operand(weight, row, column, each * row, channels, channels), points(taps, by_place=False),
        out, (of.inputs, prod(w.size)), each * taps, of.groups,
        None, epilogue, epilogue_inputs, outputs, precision, settings,
    )  # fmt: skip


def _implicit_product(
    a: Tensor, a_grid: tuple[int, int], view_a: View, b: Operand, view_b: View | None,
    out: Tensor, grid: tuple[int, int], inner: int, groups: int,
    bias: Tensor | None, epilogue: Any, inputs: Sequence[Input], outputs: Sequence[Tensor],
    precision: Precision, settings: Settings | None,
) -> list[Launch]:  # fmt: skip
    """The launch of a product of a view of grids with a weight; ``grid``: channels and points of a result."""
    (channels, places), each = grid, grid[0] // groups
    require("the grid", a, prod(a_grid))
    require("out", out, channels * places)
    a, out, _, inputs, outputs = joined_rows(a, out, None, inputs, outputs)
    if a.dim() != 2:
        raise InternalError("the rows of a convolution lie apart in memory", where=str(a.stride()))
    samples = a.shape[0]
    for tensor in outputs:
        require("an output", tensor, samples, channels * places)
    if groups > 1 and len(in_memory(inputs)) < len(inputs):
        raise InternalError("every group of a convolution would have equal draws")
    if bias is not None:
        require("bias", bias, channels)
    shape = Shape(_rows(samples, places), each, inner, groups)
    if settings is None:
        settings = matrix_default(shape, a.dtype, precision, views=True)
        settings = with_results(settings, 1 + len(outputs), a.dtype, precision)

    def of_group(tensor: Input) -> Matrix:
        """A matrix whose items are the channels of the groups, or the same for all."""
        found = matrix(tensor)
        own = not isinstance(tensor, Draw) and tensor.dim() > 0 and tensor.shape[-1] > 1
        return found._replace(batch=each * places * found.column) if own else found

    tiles = cdiv(shape.rows, settings.block_m) * cdiv(shape.columns, settings.block_n)
    return [
        launch(
            gemm_kernel,
            (tiles, groups),
            settings,
            a=_grids(a, a_grid, groups, shape.rows),
            b=b,
            out=of_group(out),
            outputs=tuple(map(of_group, outputs)),
            inputs=tuple(map(of_group, inputs)),
            M=shape.rows,
            N=each,
            K=inner,
            bias=None if bias is None else matrix(bias)._replace(batch=each * bias.stride(0)),
            add=None,
            EPILOGUE=epilogue,
            KINDS=kinds(inputs, samples, channels * places),
            RESULTS=len(outputs),
            VIEW_A=view_a,
            VIEW_B=view_b,
            PLACES=places,
            **blocks(settings),
            **arithmetic([a, b.pointer], precision),
        )
    ]


@Template
def convolve_gradient(
    g: Tensor,
    x: Tensor,
    out: Tensor,
    geometry: Geometry,
    *,
    alpha: float = 1.0,
    homogeneous: bool = False,
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out = α Σ g ⋆ x`` over samples and places, ``[O, columns]``; ``1/N`` for α makes the mean of samples.

    Args:
        g, x: ``[B, O·T]`` and ``[B, C·P]``.
        homogeneous: whether the column of a bias, ``α Σ g``, follows the others.

    Raises InternalError if shapes do not fit.
    """
    of, w = geometry, geometry.window
    each, columns = of.outputs // of.groups, of.columns + homogeneous
    require("g", g, x.shape[0], of.outputs * of.places)
    require("x", x, g.shape[0], of.size)
    require("out", out, of.outputs, columns)
    vectors = _grids(g, (of.outputs, of.places), of.groups, each)
    inputs = _grids(x, (of.inputs, prod(w.size)), of.groups, of.columns)
    left = Side(vectors, points(of.places, by_place=False))
    right = Side(inputs, forward(w, by_place=False))
    shape = Shape(each, columns, _rows(g.shape[0], of.places), of.groups)
    return moment_of_sides(
        left, right, matrix(out)._replace(batch=each * out.stride(0)), shape,
        symmetric=False, homogeneous=homogeneous, alpha=alpha, precision=precision, settings=settings,
    )  # fmt: skip


@Template
def patch_moment(
    x: Tensor,
    out: Tensor,
    geometry: Geometry,
    *,
    alpha: float = 1.0,
    homogeneous: bool = False,
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out = α Σ p pᵀ`` over the patches ``p``, or ``[p, 1]``, at all places of all groups and samples.

    Args:
        x: ``[.., C·P]``, whose rows are those of one matrix.
        out: ``[columns, columns]``, or one more where ``homogeneous``; symmetric bit by bit.
    """
    of, w = geometry, geometry.window
    x, size = rows_of(x), of.columns + homogeneous
    require("x", x, x.shape[0], of.size)
    require("out", out, size, size)
    seen = forward(w, by_place=False, groups=of.groups, channels=of.inputs // of.groups)
    side = Side(_grids(x, (of.inputs, prod(w.size)), 1, of.columns), seen)
    rows = _rows(x.shape[0], of.groups * of.places)
    return moment_of_sides(
        side, side, matrix(out), Shape(size, size, rows),
        symmetric=True, homogeneous=homogeneous, alpha=alpha, precision=precision, settings=settings,
    )  # fmt: skip


def _grids(batch: Tensor, of: tuple[int, int], groups: int, size: int) -> Operand:
    """A batch of grids, of so many channels and points, as an operand that is seen by a view."""
    (channels, count), (row, column) = of, batch.stride()
    return Operand(batch, row, column, channels // groups * count * column, size, size)


def _rows(samples: int, places: int) -> int:
    """The places of all samples; they are numbered in 32 bits."""
    if samples * places >= 2**31:
        raise InternalError(f"{samples} samples of {places} places are more than a kernel counts")
    return samples * places


def space(
    shape: Shape,
    dtype: torch.dtype,
    precision: Precision,
    *,
    square: bool = False,
    split: bool = False,
) -> tuple[Settings, ...]:
    """Settings worth measuring, of a moment ``split``, of one of patches ``square``; the default first."""
    return matrix_space(shape, dtype, precision, square=square, split=split, views=True)
