"""Convolutions and pooling on flat grids ``[.., C·P]``, for emitted steps.

Convolutions are torch's own kernels. Pooling is not: on a CPU torch's goes point by point, and the maximum of
whole slices of the grid, one a tap, is many times faster; a dimension after the other for the value. From and
to the winners goes one gather or scatter by the numbers of their points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..graph.windows import Geometry, Window


def window(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...] = (),
    padding: tuple[int, ...] = (),
    dilation: tuple[int, ...] = (),
    ceil: bool = False,
) -> Window:
    """A window on a grid; a stride and dilation of 1 and no padding are left out."""
    ones, none = (1,) * len(size), (0,) * len(size)
    return Window(size, kernel, stride or ones, padding or none, dilation or ones, ceil)


def convolution(of: Window, inputs: int, outputs: int, groups: int = 1) -> Geometry:
    """A convolution between so many channels."""
    return Geometry(of, inputs, outputs, groups)


# --- convolutions -------------------------------------------------------------------------------------


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, out: Tensor | None = None
) -> Tensor:
    """``W ⋆ x + b``, a tensor of its own or in ``out``."""
    w = g.window
    result = torch.convolution(
        _grids(x, w.size).flatten(end_dim=-2 - len(w.size)), _kernels(weight, g), bias,
        w.stride, w.padding, w.dilation, False, (0,) * len(w.size), g.groups,
    )  # fmt: skip
    return _kept(result, x, out)


def adjoint(g: Tensor, weight: Tensor, of: Geometry, out: Tensor | None = None) -> Tensor:
    """``W ∗ g``: vectors at the places back to the grid."""
    w = of.window
    if _one_tap(of):
        return _at_points(g, weight, w, out)
    result = torch.convolution(
        _grids(g, w.places).flatten(end_dim=-2 - len(w.size)), _kernels(weight, of), None,
        w.stride, w.padding, w.dilation, True, w.beyond, of.groups,
    )  # fmt: skip
    return _kept(result, g, out)


def _one_tap(of: Geometry) -> bool:
    """Whether every place sees one point, and some points are seen by none."""
    w = of.window
    inside = math.prod(w.kernel) == 1 and not any(w.padding)
    return inside and math.prod(w.stride) > 1 and of.groups == 1


def _at_points(g: Tensor, weight: Tensor, w: Window, out: Tensor | None) -> Tensor:
    """``Wᵀ g`` at the points that places see, else zero; torch's kernel takes several times as long."""
    if out is None:
        out = g.new_empty(*g.shape[:-1], weight.shape[1] * math.prod(w.size))
    vectors = torch.matmul(weight.mT, _grids(g, w.places).flatten(-len(w.size)))
    points = _slice(_grids(out.zero_(), w.size), w, (0,) * len(w.size))
    points.copy_(vectors.unflatten(-1, w.places))
    return out


def gradient(
    g: Tensor, x: Tensor, of: Geometry, homogeneous: bool, out: Tensor, coordinate: float = 1.0
) -> None:
    """``(1/N) Σ g ⋆ x`` over samples and places, with the bias's column where homogeneous."""
    w, samples = of.window, x.shape[-2]
    _, weights, biases = torch.ops.aten.convolution_backward(
        _grids(g, w.places), _grids(x, w.size), x.new_empty(_shape(of)), [of.outputs],
        w.stride, w.padding, w.dilation, False, (0,) * len(w.size), of.groups,
        (False, True, homogeneous),
    )  # fmt: skip
    torch.div(weights.reshape(of.outputs, -1), samples, out=out[:, : of.columns])
    if homogeneous:
        torch.mul(biases, coordinate / samples, out=out[:, -1])


def patches(x: Tensor, g: Geometry, out: Tensor) -> None:
    """``[columns, .., groups·T]``, a column's places copied at once."""
    w = g.window
    grid = _padded(_grids(x, w.size).unflatten(-1 - len(w.size), (g.groups, -1)), w, 0.0)
    grid = grid.movedim(-1 - len(w.size), 0)  # a group's channels
    columns = out.unflatten(-1, (g.groups, *w.places)).unflatten(0, (-1, *w.kernel))
    for tap in w.taps:
        columns[(slice(None), *tap)].copy_(_slice(grid, w, tap))


def block_diagonal(m: Tensor, blocks: int, out: Tensor) -> None:
    """M within its diagonal blocks, else zero."""
    inner, outer = (
        t.unflatten(1, (blocks, -1)).unflatten(0, (blocks, -1)) for t in (m, out.zero_())
    )
    outer.diagonal(dim1=0, dim2=2).copy_(inner.diagonal(dim1=0, dim2=2))


def _kept(result: Tensor, like: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return result.reshape(*like.shape[:-1], -1)
    return out.copy_(result.reshape(out.shape))


def _kernels(weight: Tensor, g: Geometry) -> Tensor:
    return weight.reshape(_shape(g))


def _shape(g: Geometry) -> tuple[int, ...]:
    return (g.outputs, g.inputs // g.groups, *g.window.kernel)


# --- pooling ------------------------------------------------------------------------------------------


def max_pool(x: Tensor, w: Window, out: Tensor) -> None:
    """The maximum of every window."""
    _pool(torch.maximum, _padded(_grids(x, w.size), w, -math.inf), w, out)


def sum_pool(x: Tensor, w: Window, out: Tensor) -> None:
    """The sum of every window."""
    _pool(torch.add, _padded(_grids(x, w.size), w, 0.0), w, out)


def _pool(join: Callable[..., Tensor], grid: Tensor, w: Window, out: Tensor) -> None:
    for axis in reversed(range(len(w.size))):
        first, *others = (_along(grid, w, axis, tap) for tap in range(w.kernel[axis]))
        grid = first
        for number, other in enumerate(others):
            grid = join(grid, other) if number == 0 else join(grid, other, out=grid)
    out.copy_(grid.reshape(out.shape))


def winners(x: Tensor, maxima: Tensor, w: Window, out: Tensor) -> None:
    """How many taps come before the first that holds the maximum: ``Σ_a Π_{b ≤ a} [x_b ≠ y]``."""
    grid, most = _padded(_grids(x, w.size), w, -math.inf), _grids(maxima, w.places)
    before = torch.ones_like(most, dtype=torch.bool)
    small = (
        torch.uint8 if len(w.taps) <= 256 else torch.int32
    )  # counted in bytes, in a third less time
    found = torch.zeros_like(most, dtype=small)
    for tap in w.taps[:-1]:
        before &= _slice(grid, w, tap) != most
        found += before.view(torch.uint8)
    out.copy_(found.reshape(out.shape))


def pick(r: Tensor, chosen: Tensor, w: Window, out: Tensor) -> None:
    """``r`` at the winners."""
    grid = _padded(_grids(r, w.size), w, 0.0).flatten(-len(w.size))
    points = _points(chosen, w).expand(*grid.shape[:-1], -1)
    out.copy_(grid.gather(-1, points).reshape(out.shape))


def spread(g: Tensor, chosen: Tensor | None, w: Window, out: Tensor) -> None:
    """``g`` at the winners, or without them at every tap; what several windows give a point adds up."""
    given, grid = _grids(g, w.places), _grids(out, w.size)
    if chosen is None and w.tiles:
        dims = len(w.size)
        for split in zip(w.places, w.kernel, strict=True):  # the taps behind all places
            grid = grid.unflatten(-dims, split).movedim(-dims, -1)
        grid.copy_(given[(..., *[None] * dims)])
        return
    whole = _padded(grid, w, 0.0).zero_()
    if chosen is not None:
        flat, vectors = whole.flatten(-len(w.size)), given.flatten(-len(w.size))
        points = _points(chosen, w).expand_as(vectors)
        (flat.scatter_ if w.disjoint else flat.scatter_add_)(-1, points, vectors)
    else:
        for tap in w.taps:
            point = _slice(whole, w, tap)
            (point.copy_ if w.disjoint else point.add_)(given)
    if whole is not grid:
        for axis, (before, size) in enumerate(zip(w.padding, w.size, strict=True)):
            whole = whole.narrow(axis - len(w.size), before, size)
        grid.copy_(whole)


def _points(chosen: Tensor, w: Window) -> Tensor:
    """The points of the padded grid behind the winners: ``[.., C·T] → [.., C, T]``."""
    numbers = chosen.unflatten(-1, (-1, math.prod(w.places))).long()
    points = _points_of_taps(w, chosen.device)
    first = torch.arange(0, points.numel(), len(w.taps), device=chosen.device)
    return points.take(numbers.add_(first))


@lru_cache(maxsize=64)  # the few windows of the networks at hand
def _points_of_taps(w: Window, device: torch.device) -> Tensor:
    """The point of the padded grid behind every tap of every window: ``[T, k]``."""
    axes = zip(w.size, w.padding, w.overhang, strict=True)
    padded = tuple(size + before + max(0, after) for size, before, after in axes)
    points = torch.arange(math.prod(padded), device=device).view(1, *padded)
    return torch.stack([_slice(points, w, tap).flatten() for tap in w.taps], dim=-1)


# --- grids --------------------------------------------------------------------------------------------


def _grids(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """``[.., C, *size]``, a view."""
    return x.unflatten(-1, (-1, *size))


def _padded(grid: Tensor, w: Window, value: float) -> Tensor:
    """The grid as far as windows reach; itself where they stay inside."""
    if not any(w.padding) and all(over <= 0 for over in w.overhang):
        return grid
    ends = zip(w.padding, w.overhang, strict=True)
    both = chain.from_iterable((before, max(0, after)) for before, after in reversed(list(ends)))
    return functional.pad(grid, tuple(both), value=value)


def _slice(grid: Tensor, w: Window, tap: tuple[int, ...]) -> Tensor:
    """Of a padded grid the points behind one tap of every window."""
    for axis, number in enumerate(tap):
        grid = _along(grid, w, axis, number)
    return grid


def _along(grid: Tensor, w: Window, axis: int, tap: int) -> Tensor:
    """The same for one dimension."""
    first, last = tap * w.dilation[axis], (w.places[axis] - 1) * w.stride[axis]
    whole: list[Any] = [...] + [slice(None)] * len(w.size)
    whole[1 + axis] = slice(first, first + last + 1, w.stride[axis])
    return grid[tuple(whole)]
