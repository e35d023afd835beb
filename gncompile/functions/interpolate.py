"""Interpolation on a regular grid and its derivatives, in plain torch and as an operator of exported graphs.

A grid T holds values at the whole numbers; at a place x the interpolant is::

    y(x) = Σ_k T[k] Π_i w(x_i − k_i)

with the kernel w of :data:`KERNELS`. Where k is outside the grid, ``T[k]`` is what the padding says:
``zeros``, the value of the nearest point (``border``), or of the point mirrored at the grid's edge
(``reflection``: at the outer points, or without ``corners`` half a step beyond). A derivative is the same sum
with derivatives of w: an interpolant and its derivatives are one family, by the ``order`` on each axis.

In any dimension ``linear`` and ``cubic`` are what ``bilinear`` and ``bicubic`` are to
``torch.nn.functional.grid_sample``. The cubic kernel is Keys' with a = −3/4 (R. Keys, *Cubic convolution
interpolation for digital image processing*, 1981, §II); its first derivative is continuous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import sympy
import torch
from sympy import Rational
from torch import Tensor

from ..errors import CompileError

Kernel = Literal["linear", "cubic"]
Padding = Literal["zeros", "border", "reflection"]

_S, _A = sympy.Symbol("s"), Rational(-3, 4)
KERNELS: dict[str, tuple[sympy.Expr, ...]] = {
    "linear": (1 - _S,),
    "cubic": (
        (_A + 2) * _S**3 - (_A + 3) * _S**2 + 1,
        _A * (_S**3 - 5 * _S**2 + 8 * _S - 4),
    ),
}
"""``w(±s)`` for s in [0, 1], then in [1, 2]; 0 beyond."""


@dataclass(frozen=True)
class Interpolant:
    """How a grid of ``size`` points is read between them, and which derivative: ``order`` of every axis."""

    size: tuple[int, ...]
    kernel: Kernel
    padding: Padding
    corners: bool
    order: tuple[int, ...]

    def derivative(self, axis: int) -> Interpolant | None:
        """``∂/∂x_axis``; nothing where that is zero between the points."""
        order = tuple(o + (i == axis) for i, o in enumerate(self.order))
        return replace(self, order=order) if any(map(any, taps(self.kernel, order[axis]))) else None

    @property
    def folds(self) -> bool:
        """Whether it is places that the padding folds back, as torch has it, or the points around them."""
        return self.kernel == "linear" and self.padding != "zeros"

    @property
    def first(self) -> int:
        """The first point that counts, relative to that below the place."""
        return 1 - len(KERNELS[self.kernel])

    def __str__(self) -> str:
        order = f", ∂{list(self.order)}" if any(self.order) else ""
        size = " × ".join(map(str, self.size))
        return f"{self.kernel} on {size}, {self.padding}{order}"


@cache
def taps(kernel: str, order: int) -> tuple[tuple[float, ...], ...]:
    """``d^order w(f − k) / df^order`` for f in [0, 1) and each k that counts: coefficients of 1, f, f², …"""
    f, pieces, found = sympy.Symbol("f"), KERNELS[kernel], []
    for k in range(1 - len(pieces), len(pieces) + 1):
        s = f - k if k <= 0 else k - f
        piece = pieces[-k if k <= 0 else k - 1].xreplace({_S: s})
        found.append(sympy.Poly(sympy.diff(piece, f, order), f).all_coeffs()[::-1])
    return tuple(tuple(map(float, each)) for each in found)


def interpolated(of: Interpolant, grid: Tensor, places: Sequence[Tensor]) -> Tensor:
    """``[.., C, P]`` of a grid ``[C, *size]`` at ``places``, a tensor ``[.., C or 1, P]`` for every axis.

    Differentiable by autograd, to any order. NaN where a place is.

    The weights sum to 1, or to 0 in a derivative: what is weighted are differences to the first point, so
    that slopes of an image that is nearly constant keep their digits.
    """
    ones = [1] * (places[0].dim() - 2)
    index = torch.arange(len(grid), device=grid.device).view(
        1, *ones, -1, 1
    )  # points first: [k, .., C, P]
    weights = inside = torch.ones_like(index, dtype=torch.bool)
    for axis, x in enumerate(places):
        k, w = _taps(of, axis, x)
        at = k.nan_to_num().clamp(0, of.size[axis] - 1).long()
        index = (index[:, None] * of.size[axis] + at).flatten(0, 1)
        weights = (weights[:, None] * w).flatten(0, 1)
        if of.padding == "zeros":
            inside = (inside[:, None] & (at == k)).flatten(0, 1)
    points = grid.take(index)
    if of.padding == "zeros":
        points = torch.where(inside, points, 0.0)
    first = points[0]
    y = ((points - first) * weights).sum(0)
    return y if any(of.order) else y + first


def _taps(of: Interpolant, axis: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The points that count at x ``[..]`` along an axis, as numbers, and their weights: ``[k, ..]`` each."""
    size, order = of.size[axis], of.order[axis]
    sign = _sign(of, x, size) if of.folds and order else None
    x = _folded(of, x, size) if of.folds else x
    below = x.detach().floor()
    f, polynomials = x - below, taps(of.kernel, order)
    weights = torch.stack([_horner(coefficients, f) for coefficients in polynomials])
    if sign is not None:  # the linear kernel has no derivatives but the first
        weights = weights * sign
    near = torch.arange(len(polynomials), dtype=x.dtype, device=x.device) + of.first
    k = below + near.view(-1, *[1] * x.dim())
    return k if of.padding == "zeros" else _folded(of, k, size), weights


def _horner(coefficients: Sequence[float], f: Tensor) -> Tensor:
    result = 0 * f + coefficients[-1]
    for c in coefficients[-2::-1]:
        result = result * f + c
    return result


def _edge(of: Interpolant, size: int) -> tuple[float, float]:
    """Where a reflecting grid begins, and how long it is."""
    return (0.0, size - 1.0) if of.corners else (-0.5, float(size))


def _folded(of: Interpolant, x: Tensor, size: int) -> Tensor:
    """A place as the padding sees it, in [0, size − 1]; its slope is 0 on and beyond a border, as torch's."""
    if of.padding == "reflection":
        low, span = _edge(of, size)
        if not span:
            return 0 * x
        beyond = (x - low).abs()
        rest, flips = beyond.fmod(span), (beyond.detach() / span).floor()
        x = low + torch.where(flips % 2 == 0, rest, span - rest)
    top = size - 1.0
    return torch.where(x <= 0, 0.0, torch.where(x >= top, top, x))


def _sign(of: Interpolant, x: Tensor, size: int) -> Tensor:
    """The slope of :func:`_folded`: 1, −1, or 0."""
    inner = _folded(of, x, size)
    sign = ((inner > 0) & (inner < size - 1)).to(x)
    if of.padding == "reflection" and size > 1:
        low, span = _edge(of, size)
        odd = ((x - low).abs() / span).floor() % 2
        sign = sign * (1 - 2 * odd) * (1 - 2 * (x < low).to(x))
    return sign


def interpolate(
    grid: Tensor,
    places: Tensor,
    *,
    mode: Kernel = "linear",
    padding: Padding = "border",
    box: Sequence[tuple[float, float]] | None = None,
    order: Sequence[int] | None = None,
) -> Tensor:
    """What a grid holds between its points, at places that a network computes: ``[N, C, …]``.

    ``y(x) = Σ_k grid[:, k] Π_i w(x_i − k_i)`` with w linear, or Keys' cubic kernel with a = −3/4: values as
    ``torch.nn.functional.grid_sample`` has them, in one, two and three dimensions. It is plain torch, which
    autograd derives; where a network is compiled, it is one node of value and slopes, the grid a constant.

    Args:
        grid: ``[C, *size]``, C numbers at each point of a regular grid of one to three dimensions: a buffer,
            say an image ``[C, H, W]``. No sample has its own.
        places: ``[N, …, d]`` for a grid of d dimensions; coordinate i goes along the grid's dimension 1 + i,
            so that an image's are (row, column).
        mode: ``"linear"``, or ``"cubic"``, whose slopes are continuous.
        padding: What is outside: ``"border"``, the nearest point's value; ``"zeros"``; or ``"reflection"`` at
            the outer points.
        box: Coordinates of the first and last point of each axis; by default they are 0 and size − 1.
        order: Which derivative, by axis: ``(0, 1)`` is the slope along the second, by its coordinate in the
            box. By default the value.

    Returns:
        ``[N, C, …]``. NaN where a place is.

    Raises :class:`~gncompile.errors.CompileError` for a grid, places or settings of another form. The cost is
    ``2^d`` or ``4^d`` points a place and channel.

    >>> ramp = torch.tensor([[0.0, 1.0, 4.0, 9.0]])
    >>> interpolate(ramp, torch.tensor([[0.5], [2.0], [7.0]])).T
    tensor([[0.5000, 4.0000, 9.0000]])
    >>> interpolate(ramp, torch.tensor([[0.25], [1.0]]), box=[(0.0, 1.0)], order=[1]).T
    tensor([[3., 0.]])
    """
    rank = grid.dim() - 1
    order = tuple(order) if order is not None else (0,) * rank
    _check(grid, places, mode, padding, box, order)
    factor = 1.0
    if box is not None:
        low, high = places.new_tensor(list(zip(*box, strict=True)))
        points = places.new_tensor(grid.shape[1:]) - 1
        places = (places - low) * (points / (high - low))
        lengths = [(size - 1) / (b - a) for size, (a, b) in zip(grid.shape[1:], box, strict=True)]
        factor = math.prod(each**o for each, o in zip(lengths, order, strict=True))
    if torch.compiler.is_exporting():
        y = _operator(grid, places, mode, padding, list(order))
    else:
        y = _evaluated(grid, places, mode, padding, order)
    return y if factor == 1.0 else factor * y


def _check(
    grid: Tensor,
    places: Tensor,
    mode: str,
    padding: str,
    box: Sequence[tuple[float, float]] | None,
    order: tuple[int, ...],
) -> None:
    check_grid(grid, mode, padding, box)
    rank, found, instead = grid.dim() - 1, "", ""
    if places.dim() < 2 or places.shape[-1] != rank:
        shape = ["N", *places.shape[1:]]
        found = f"places of shape [{', '.join(map(str, shape))}] for a grid of {rank} dimensions"
        instead = f"give them [N, …, {rank}], a coordinate for every dimension of the grid"
    elif len(order) != rank or any(o < 0 for o in order):
        found = f"the order {list(order)} for a grid of {rank} dimensions"
        instead = "give a number of derivatives for every dimension, 0 for none"
    if found:
        raise CompileError(f"interpolate was given {found}", instead=instead)


def check_grid(
    grid: Tensor, mode: str, padding: str, box: Sequence[tuple[float, float]] | None
) -> None:
    """Raise :class:`CompileError` unless a grid ``[C, *size]`` can be read so."""
    rank, found, instead = grid.dim() - 1, "", ""
    if not 1 <= rank <= 3 or not grid.numel():
        found = f"a grid of shape {list(grid.shape)}"
        instead = "give it [C, *size] with one to three dimensions after the channels: image[None]"
    elif mode == "nearest":
        found = "the mode 'nearest', whose slope is zero wherever it is defined"
        instead = "use 'linear' or 'cubic'"
    elif mode not in get_args(Kernel):
        found, instead = f"the mode {mode!r}", "use 'linear' or 'cubic'"
    elif padding not in get_args(Padding):
        found, instead = f"the padding {padding!r}", "use 'zeros', 'border' or 'reflection'"
    elif box is not None and (len(box) != rank or any(a == b for a, b in box)):
        found = f"the box {list(box)} for a grid of {rank} dimensions"
        instead = "give a pair of two coordinates, of its first and last point, for every dimension"
    if found:
        raise CompileError(f"interpolate was given {found}", instead=instead)


def _evaluated(
    grid: Tensor, places: Tensor, mode: Kernel, padding: Padding, order: Sequence[int]
) -> Tensor:
    of = Interpolant(tuple(grid.shape[1:]), mode, padding, True, tuple(order))
    flat = places.flatten(1, -2) if places.dim() > 2 else places[:, None]
    y = interpolated(of, grid, [x[:, None] for x in flat.unbind(-1)])
    return y.reshape(len(places), len(grid), *places.shape[1:-1])


@torch.library.custom_op("gncompile::interpolate", mutates_args=())
def _operator(grid: Tensor, places: Tensor, mode: str, padding: str, order: list[int]) -> Tensor:
    return _evaluated(grid, places, mode, padding, order)  # type: ignore[arg-type]


@_operator.register_fake
def _shape(grid: Tensor, places: Tensor, mode: str, padding: str, order: list[int]) -> Tensor:
    return places.new_empty((places.shape[0], grid.shape[0], *places.shape[1:-1]))
