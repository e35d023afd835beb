"""The reference for interpolation: the value of the interpolant, and its derivatives by autograd."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..functions.interpolate import interpolated
from ..program.interpolation import Interpolate


def interpolate(op: Interpolate, grid: Tensor, *places: Tensor) -> Tensor:
    """``op(grid, places)``."""
    value_of = replace(op.of, order=(0,) * len(op.of.order))
    with torch.enable_grad():
        x = [p.detach().unflatten(-1, (len(grid), -1)).clone().requires_grad_() for p in places]
        y = interpolated(value_of, grid, x)
        for axis, order in enumerate(op.of.order):
            for _ in range(order):
                (y,) = torch.autograd.grad(y.sum(), x[axis], create_graph=True)
    return y.detach().flatten(-2)
