"""A constant grid between its points; see ``functions/interpolate.py``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..functions.interpolate import Interpolant, Kernel, Padding, interpolated


def interpolate(
    grid: Tensor,
    places: Sequence[Tensor],
    kernel: Kernel,
    padding: Padding,
    order: tuple[int, ...],
    corners: bool = True,
    *,
    out: Tensor,
) -> None:
    """``out ← `` the interpolant of a grid ``[C, *size]``, or a derivative, at places ``[.., C·P]``."""
    of = Interpolant(tuple(grid.shape[1:]), kernel, padding, corners, order)
    by_channel = [x.unflatten(-1, (len(grid), -1)) for x in places]
    out.unflatten(-1, (len(grid), -1)).copy_(interpolated(of, grid, by_channel))
