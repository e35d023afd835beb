"""Numbers of a step in Python: arithmetic that gives inf and NaN where Python raises, and the step sizes.

Emitted steps call these on a CPU for what is not plain addition or multiplication.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import torch
from torch import Tensor

Vector = list[float]
Matrix = list[Vector]

RIDGE = 1e-13
"""Relative ridge of the small system, some hundred roundings of its float64: collinear directions share a
step, a zero direction gets none."""
SMALL = 8
"""Systems of at most so many unknowns are solved in Python, which is faster than to call LAPACK."""


def divide(a: float, b: float) -> float:
    """``a / b``."""
    if b:
        return a / b
    return math.copysign(math.inf, a) * math.copysign(1.0, b) if a and a == a else math.nan


def sqrt(a: float) -> float:
    """``√a``; NaN below 0."""
    return math.sqrt(a) if a >= 0 else math.nan


def maximum(a: float, b: float) -> float:
    """The larger of two; NaN if one of them is."""
    return a if a > b or a != a else b


def minimum(a: float, b: float) -> float:
    """The smaller of two; NaN if one of them is."""
    return a if a < b or a != a else b


def dot(a: Tensor, b: Tensor) -> float:
    """``Σ a ⊙ b``."""
    if a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.view(-1), b.view(-1)).item()
    return (a * b).sum().item()


def step_sizes(
    terms: Vector,
    groups: tuple[int, ...],
    momentum: bool,
    growth: float | None,
    cap: float | None,
    out: Tensor,
    small: int = SMALL,
) -> None:
    """:func:`gncompile.runtime.linalg.step_sizes` for numbers of the host; up to ``small`` without LAPACK."""
    count = max(groups) + 1 + momentum
    own = count - momentum
    m = [[0.0] * count for _ in range(count)]
    for (i, j), term in zip(combinations_with_replacement(range(count), 2), terms, strict=False):
        m[i][j] = m[j][i] = term
    rest = terms[count * (count + 1) // 2 :]
    b, usual, most = rest[:count], rest[count], min([1.0, *rest[count + 1 :]])
    c = _minimiser(m, b, small)
    if cap is not None:
        c[:own] = [_clamped(x, -cap, cap) for x in c[:own]]
        if momentum:
            slope = b[-1] + _inner(m[-1][:own], c)
            c[-1] = divide(-slope, m[-1][-1]) if m[-1][-1] > 0 else 0.0
    if momentum:
        last = minimum(_clamped(c[-1], 0.0, 1.0), most)
        if c[-1] != last:
            c = _minimiser(
                [row[:own] for row in m[:own]],
                [x + row[-1] * last for x, row in zip(b[:own], m, strict=False)],
                small,
            )
            c = [*(c if cap is None else (_clamped(x, -cap, cap) for x in c)), last]
    slope = _inner(b, c)
    # Of two zeros the second, which is not -0.0 and so divides to inf below.
    length = maximum(-slope, _inner(c, [_inner(row, c) for row in m]))
    if growth is not None:
        longest = growth * usual if usual > 0 else math.inf
        shortened = minimum(divide(longest, length), 1.0)
        c = [x * shortened for x in c]
        length = minimum(length, longest)
    predicted = _inner(b, c) + _inner(c, [_inner(row, c) for row in m]) / 2
    whole = sum(b[:own])
    effective = divide(_inner(b[:own], c), whole) if whole else 0.0
    sizes = [c[group] for group in groups]
    out.copy_(
        torch.tensor(
            [*sizes, length, c[-1] if momentum else 0.0, predicted, effective], dtype=torch.float64
        )
    )


def _inner(a: Vector, b: Vector) -> float:
    return sum(map(float.__mul__, a, b))


def _clamped(x: float, low: float, high: float) -> float:
    return minimum(maximum(x, low), high)


def _minimiser(m: Matrix, b: Vector, small: int) -> Vector:
    """``-m⁻¹ b``, scaled to a unit diagonal; 0 for directions without curvature."""
    scale = [1 / math.sqrt(row[i]) if row[i] > 0 else 0.0 for i, row in enumerate(m)]
    scaled = [
        [s * x * t for x, t in zip(row, scale, strict=True)]
        for s, row in zip(scale, m, strict=True)
    ]
    for i, row in enumerate(scaled):
        row[i] += RIDGE
    solution = _solve(scaled, [s * x for s, x in zip(scale, b, strict=True)], small)
    return [-s * x for s, x in zip(scale, solution, strict=True)]


def _solve(m: Matrix, b: Vector, small: int) -> Vector:
    """``m⁻¹ b`` for a positive definite m, by elimination."""
    if len(m) > small:
        system = torch.tensor(m, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        return torch.linalg.solve_ex(*system)[0].tolist()
    rows = [[*row, x] for row, x in zip(m, b, strict=True)]
    for k, pivot in enumerate(rows):
        for row in rows[k + 1 :]:
            ratio = divide(row[k], pivot[k])
            for j in range(k + 1, len(pivot)):
                row[j] -= ratio * pivot[j]
    x = [0.0] * len(rows)
    for k in reversed(range(len(rows))):
        row = rows[k]
        x[k] = divide(row[-1] - sum(row[j] * x[j] for j in range(k + 1, len(rows))), row[k])
    return x
