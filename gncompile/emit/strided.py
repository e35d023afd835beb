"""Index tables as nested loops, so that dimensions are permuted, or broadcast, by strided views.

Heads of attention, expanded vectors and their like have long tables with few loops; torch copies strided
views many times faster than it follows an index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_LOOPS = 5


@dataclass(frozen=True)
class Loops:
    """``to + Σ_k i_k to_strides[k]`` and ``source + Σ_k i_k strides[k]`` for all ``i_k < sizes[k]``."""

    sizes: tuple[int, ...]
    to_strides: tuple[int, ...]
    strides: tuple[int, ...]
    to: int
    source: int


def loops_of(to: Sequence[int], source: Sequence[int]) -> Loops | None:
    """The pairs of places, in their order, as nested loops; None where there are too many.

    Nor where one goes backwards, which no view of a tensor does.
    """
    points = np.stack([np.array(to), np.array(source)], axis=1)
    first, found = points[0], list[tuple[int, int, int]]()
    while len(points) > 1:
        steps = np.diff(points, axis=0)
        breaks = np.flatnonzero((steps != steps[0]).any(axis=1)) + 1
        size = math.gcd(len(points), *breaks.tolist())
        if size == 1 or len(found) == MOST_LOOPS or steps[0].min() < 0:
            return None
        found.append((size, *steps[0].tolist()))
        points = points[::size]
    sizes, to_strides, strides = zip(*reversed(found), strict=True) if found else ((1,), (0,), (0,))
    return Loops(sizes, to_strides, strides, int(first[0]), int(first[1]))
