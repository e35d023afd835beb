"""What windows see in a batch of grids, as an operand that memory does not hold: an *implicit* product.

A grid ``[B, C·P]`` has C channels of P points in a row, a channel after the other. A :class:`View` of it is
a matrix of *places* and *columns*. Places are counted sample by sample, group by group, then along the axes;
columns channel by channel, then tap by tap. On every axis the element at place ``q``, tap ``k`` is the point

    (scale q + shift + step k) / divisor

if that is a whole number on the grid, else 0. With ``(stride, -padding, dilation, 1)`` these are the patches
that a convolution multiplies; with ``(1, padding, -dilation, stride)``, places and points exchanged, those
of its adjoint: a point receives from every window over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .language import tl, triton


class Window(Protocol):
    """Where a window of ``kernel`` taps stands on a grid of ``size``: one number for each axis."""

    @property
    def size(self) -> tuple[int, ...]: ...
    @property
    def kernel(self) -> tuple[int, ...]: ...
    @property
    def stride(self) -> tuple[int, ...]: ...
    @property
    def padding(self) -> tuple[int, ...]: ...
    @property
    def dilation(self) -> tuple[int, ...]: ...
    @property
    def places(self) -> tuple[int, ...]: ...


class Axis(NamedTuple):
    """One axis of a view: so many ``places`` and ``taps``; ``limit`` points, ``apart`` in memory."""

    places: int
    taps: int
    scale: int
    shift: int
    step: int
    divisor: int
    limit: int
    apart: int

    @property
    def inside(self) -> bool:
        """Whether every element is a point of the grid."""
        far = self.step * (self.taps - 1)
        last = self.shift + self.scale * (self.places - 1)
        return (
            self.divisor == 1 and self.shift + min(0, far) >= 0 and last + max(0, far) < self.limit
        )


class View(NamedTuple):
    """The axes, the last first; ``by_place`` if places are the operand's outer dimension.

    A place of one of the ``groups`` sees the ``channels`` of its own.
    """

    axes: tuple[Axis, ...]
    checked: tuple[bool, ...]
    """Of every axis whether it has elements that are no points of the grid."""
    points: int
    groups: int
    channels: int
    by_place: bool


def forward(w: Window, *, by_place: bool, groups: int = 1, channels: int = 0) -> View:
    """The patches of a convolution."""
    every = zip(w.places, w.kernel, w.stride, w.padding, w.dilation, w.size, strict=True)
    axes = [(q, k, s, -p, d, 1, size) for q, k, s, p, d, size in every]
    return _view(axes, groups, channels, by_place)


def adjoint(w: Window, *, by_place: bool) -> View:
    """What the points of the grid receive from the places of a convolution."""
    every = zip(w.size, w.kernel, w.padding, w.dilation, w.stride, w.places, strict=True)
    return _view([(q, k, 1, p, -d, s, places) for q, k, p, d, s, places in every], 1, 0, by_place)


def points(count: int, *, by_place: bool) -> View:
    """Grids of ``count`` points as they are: one tap, every point a place."""
    return _view([(count, 1, 1, 0, 1, 1, count)], 1, 0, by_place)


Numbers = tuple[int, int, int, int, int, int, int]


def _view(axes: Sequence[Numbers], groups: int, channels: int, by_place: bool) -> View:
    """``axes`` are those of a view, the first first, without how far apart their points are."""
    limits = [axis[-1] for axis in axes]
    found = [Axis(*axis, math.prod(limits[d + 1 :])) for d, axis in enumerate(axes)][::-1]
    checked = tuple(not axis.inside for axis in found)
    return View(tuple(found), checked, math.prod(limits), groups, channels, by_place)


@triton.jit
def along(place, column, mask, AXIS: tl.constexpr, CHECKED: tl.constexpr):
    """One axis: offsets of a place and of a tap, or of both together, the mask, what the next axes read."""
    PLACES: tl.constexpr = AXIS[0]
    TAPS: tl.constexpr = AXIS[1]
    DIVISOR: tl.constexpr = AXIS[5]
    LIMIT: tl.constexpr = AXIS[6]
    APART: tl.constexpr = AXIS[7]
    from_place = (place % PLACES) * AXIS[2] + AXIS[3]
    from_tap = (column % TAPS) * AXIS[4]
    of_place = from_place * APART
    of_tap = from_tap * APART
    of_both = 0
    if CHECKED:
        at = from_place + from_tap
        mask = mask & (at >= 0) & (at < LIMIT * DIVISOR)
        if DIVISOR > 1:
            mask = mask & (at % DIVISOR == 0)
            of_both = at // DIVISOR * APART
            of_place *= 0
            of_tap *= 0
    return of_place, of_tap, of_both, mask, place // PLACES, column // TAPS


@triton.jit
def seen(sample_stride, feature_stride, outer, inner, mask, VIEW: tl.constexpr):
    """Offsets of a tile of a view in 64 bits, and ``mask`` where they are points of the grid.

    The address of a patch is that of its place plus that of its tap: where nothing has to be divided, only
    the mask is computed for every element.
    """
    AXES: tl.constexpr = VIEW[0]
    CHECKED: tl.constexpr = VIEW[1]
    POINTS: tl.constexpr = VIEW[2]
    GROUPS: tl.constexpr = VIEW[3]
    CHANNELS: tl.constexpr = VIEW[4]
    if VIEW[5]:
        place = outer
        column = inner
    else:
        place = inner
        column = outer
    of_place = place * 0
    of_tap = column * 0
    of_both = 0
    for d in tl.static_range(len(AXES)):
        by_place, by_tap, by_both, mask, place, column = along(
            place, column, mask, tl.constexpr(AXES[d]), tl.constexpr(CHECKED[d])
        )
        of_place += by_place
        of_tap += by_tap
        of_both += by_both
    if GROUPS > 1:
        of_place += (place % GROUPS) * (CHANNELS * POINTS)
        place = place // GROUPS
    of_place = of_place * feature_stride + place.to(tl.int64) * sample_stride
    of_tap = (of_tap + column * POINTS) * feature_stride
    return of_place + of_tap + of_both * feature_stride, mask
