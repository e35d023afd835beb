"""A constant grid read between its points, or a derivative of that, place by place.

Every element of the result is a sum over the ``2^d`` or ``4^d`` points of the grid around its place. Places
are read once; the grid's points are gathered, by strides, and near places find them in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from .elementwise import ElementwiseSettings, arithmetic_type, default_settings
from .language import tl, triton
from .launches import Launch, Template, kinds, matrix, require, rows_of
from .tiles import load_tile, offsets, store_tile


@triton.jit
def reflected(x, SIZE: tl.constexpr, CORNERS: tl.constexpr):
    """x mirrored into the grid, and the slope of that: 1 or −1."""
    LOW: tl.constexpr = 0.0 if CORNERS else -0.5
    SPAN: tl.constexpr = SIZE - 1.0 if CORNERS else SIZE * 1.0
    beyond = tl.abs(x - LOW)
    flips = tl.floor(beyond / SPAN)
    rest = beyond - flips * SPAN
    odd = flips - 2 * tl.floor(flips / 2)
    sign = (1 - 2 * odd) * tl.where(x < LOW, -1.0, 1.0)
    return LOW + tl.where(odd > 0, SPAN - rest, rest), sign


@triton.jit
def folded(x, SIZE: tl.constexpr, PADDING: tl.constexpr, CORNERS: tl.constexpr):
    """A place as the padding sees it, in [0, SIZE − 1], and the slope of that: 0 on a border and beyond."""
    sign = x * 0 + 1
    if PADDING == "reflection" and SIZE > 1:
        x, sign = reflected(x, SIZE, CORNERS)
    inner = (x > 0) & (x < SIZE - 1)
    x = tl.where(x < 0, 0.0, x)  # comparisons, which a NaN passes
    return tl.where(x > SIZE - 1, SIZE - 1.0, x), tl.where(inner, sign, 0.0)


@triton.jit
def polynomial(f, POLYNOMIALS: tl.constexpr, AXIS: tl.constexpr, TAP: tl.constexpr):
    """``Σ_i c_i f^i`` with the coefficients of a tap on an axis."""
    LAST: tl.constexpr = len(POLYNOMIALS[AXIS][TAP]) - 1
    value = f * 0 + POLYNOMIALS[AXIS][TAP][LAST]
    for i in tl.static_range(LAST):
        value = value * f + POLYNOMIALS[AXIS][TAP][LAST - 1 - i]
    return value


@triton.jit
def interpolate_kernel(
    image, out, places, strides, row_count, column_count, per_channel,
    SIZE: tl.constexpr, POLYNOMIALS: tl.constexpr, FIRST: tl.constexpr, FOLDS: tl.constexpr,
    PADDING: tl.constexpr, CORNERS: tl.constexpr, SLOPES: tl.constexpr,
    KINDS: tl.constexpr, POINTS: tl.constexpr, VALUE: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program ``(i, j)`` computes a tile of the result; ``strides`` are the image's, its channels' first."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask, column_mask = rows < row_count, columns < column_count
    mask = row_mask[:, None] & column_mask[None, :]
    channel = image + offsets(columns // per_channel, strides[0])[None, :]
    below, fractions = (), ()
    slope = tl.full((BLOCK_M, BLOCK_N), 1.0, DTYPE)
    for axis in tl.static_range(len(SIZE)):
        x = load_tile(
            places[axis], rows, columns, row_mask, column_mask, tl.constexpr(KINDS[axis]), DTYPE
        )
        if FOLDS:
            x, sign = folded(x, SIZE[axis], PADDING, CORNERS)
            if SLOPES[axis]:
                slope *= sign
        below = below + (tl.floor(x),)  # type: ignore[assignment]
        fractions = fractions + (x - tl.floor(x),)  # type: ignore[assignment]
    total, first = tl.zeros((BLOCK_M, BLOCK_N), DTYPE), tl.zeros((BLOCK_M, BLOCK_N), DTYPE)
    for point in tl.static_range(len(POINTS)):
        weight, at, inside = slope, channel, mask
        for axis in tl.static_range(len(SIZE)):
            k = below[axis] + (FIRST + POINTS[point][axis])
            weight = weight * polynomial(fractions[axis], POLYNOMIALS, axis, POINTS[point][axis])
            if PADDING == "zeros":
                inside = inside & (k >= 0) & (k <= SIZE[axis] - 1)
            elif not FOLDS:
                k, _ = folded(k, SIZE[axis], PADDING, CORNERS)
            # A NaN is no number to convert: a place that is none reads the first point, and stays NaN.
            k = tl.where(k >= 0, tl.where(k <= SIZE[axis] - 1, k, SIZE[axis] - 1.0), 0.0)
            at = at + offsets(k.to(tl.int32), strides[axis + 1])
        value = tl.load(at, mask=inside, other=0.0).to(DTYPE)
        if point == 0:
            first = value
        total += weight * (value - first)  # the weights sum to 1, or to 0 in a derivative
    if VALUE:
        total += first
    store_tile(out, total, rows, columns, row_mask, column_mask)


def _interpolate(
    grid: Tensor,
    places: Sequence[Tensor],
    out: Tensor,
    polynomials: Sequence[Sequence[Sequence[float]]],
    padding: str,
    order: Sequence[int],
    corners: bool = True,
    *,
    settings: ElementwiseSettings | None = None,
) -> list[Launch]:
    """The interpolant of a grid ``[C, *size]``, or a derivative, at ``places``, one ``[.., C·P]`` an axis.

    Args:
        grid: ``[C, *size]`` of one to three dimensions, of any strides.
        places: For every axis ``[.., C·P]``, in points of the grid, rows at any strides.
        out: ``[.., C·P]``.
        polynomials: For every axis and each of the 2 or 4 points around a place, its weight's coefficients of
            1, f, f², …, with f what the place is beyond the point below it.
        padding: ``zeros``, ``border`` or ``reflection``.
        order: Of the derivative, by axis.
        corners: Whether a reflection is at the outer points, or half a point beyond.
        settings: The tile that a program computes.
    """
    out, places = rows_of(out), [rows_of(x) for x in places]
    rows, columns = out.shape
    for x in places:
        require("places of an interpolation", x, rows, columns)
    near = len(polynomials[0])
    points = tuple(itertools.product(range(near), repeat=len(places)))
    # An element's points are all under way at once: few elements a thread, so that nothing spills.
    settings = settings or default_settings(rows, columns, 256 if len(points) <= 16 else 128)
    arguments = {
        "image": grid,  # `grid` is a word of Triton's launcher
        "out": matrix(out),
        "places": tuple(map(matrix, places)),
        "strides": tuple(grid.stride()),
        "row_count": rows,
        "column_count": columns,
        "per_channel": columns // len(grid),
        "SIZE": tuple(grid.shape[1:]),
        "POLYNOMIALS": polynomials,
        "FIRST": 1 - near // 2,
        "FOLDS": near == 2 and padding != "zeros",  # places themselves, and else the points around
        "PADDING": padding,
        "CORNERS": corners,
        "SLOPES": tuple(o > 0 for o in order),
        "KINDS": kinds(places, rows, columns),
        "POINTS": points,
        "VALUE": not any(order),
        "DTYPE": arithmetic_type((grid, *places)),
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
    }
    tiles = triton.cdiv(rows, settings.block_m), triton.cdiv(columns, settings.block_n)
    return [Launch(interpolate_kernel, tiles, arguments, settings.num_warps, 1)]


interpolate = Template(_interpolate)
