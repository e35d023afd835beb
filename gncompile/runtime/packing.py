"""Values side by side in a vector that is sent: in full, or of a symmetric matrix one triangle.

The upper triangle of ``M [d, d]`` fills a rectangle of ``⌈d/2⌉`` rows, as LAPACK's rectangular full packed
format does (Gustavson, Waśniewski, Dongarra, Langou, *Rectangular full packed format for Cholesky's
algorithm*, 2010): the first rows as they are, and below their diagonal the triangle of the others, turned::

    a b c d          e|a b c d          of e, f, g, h:  e .
    . x y z    →     f g|x y z                          f g      = the rest, M[2:, 2:]
    . . e f
    . . . g

So both ways are copies of rectangles; an index of every element would be twice as large as float32 numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sent(value: Tensor, triangle: bool) -> int:
    """How many numbers of a value are sent."""
    return len(value) * (len(value) + 1) // 2 if triangle else value.numel()


def pack(value: Tensor, bucket: Tensor, start: int, triangle: bool) -> Tensor:
    """Copy a value to a bucket; returns its place there, a vector."""
    place = bucket[start : start + sent(value, triangle)]
    if triangle:
        top, corner, rows = _rectangle(place, len(value))
        top.copy_(value[:rows])
        corner.triu_(1).add_(value[rows:, rows:].tril())
    else:
        place.view(value.shape).copy_(value)
    return place


def unpack(bucket: Tensor, start: int, value: Tensor, triangle: bool) -> None:
    """Copy a value out of a bucket."""
    place = bucket[start : start + sent(value, triangle)]
    if not triangle:
        value.copy_(place.view(value.shape))
        return
    top, corner, rows = _rectangle(place, len(value))
    value[:rows, :rows] = _mirrored(top[:, :rows].triu())
    value[:rows, rows:] = top[:, rows:]
    value[rows:, :rows] = top[:, rows:].mT
    value[rows:, rows:] = _mirrored(corner.tril())


def _mirrored(triangle: Tensor) -> Tensor:
    """The symmetric matrix of a triangle, zeros on its other side.

    To copy a matrix turned takes a seventh of the time that adding it turned does.
    """
    turned = torch.empty(triangle.shape, dtype=triangle.dtype, device=triangle.device)
    turned.copy_(triangle.mT).fill_diagonal_(0)
    return turned.add_(triangle)


def _rectangle(place: Tensor, size: int) -> tuple[Tensor, Tensor, int]:
    """Where the first rows of a matrix of this ``size`` are, where the triangle of the others, and how many
    rows are the first."""
    rows, even = (size + 1) // 2, 1 - size % 2
    rest = size - rows
    rectangle = place.view(rows, size + even)
    return rectangle[:, even:], rectangle[rows - rest :, :rest], rows
