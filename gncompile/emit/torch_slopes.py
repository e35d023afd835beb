"""Products with a slope that are one kernel of torch, made for its own backward pass."""

from __future__ import annotations

from collections.abc import Mapping

from ..program import operations as ir
from ..program.recompute import SLOPES, U, X

KERNELS = {
    "tanh": "torch.ops.aten.tanh_backward.grad_input({0}, {1}, grad_input={out})",
    "sigmoid": "torch.ops.aten.sigmoid_backward.grad_input({0}, {1}, grad_input={out})",
    "relu": "torch.ops.aten.threshold_backward.grad_input({0}, {1}, 0, grad_input={out})",
}

PRODUCTS: Mapping[ir.Pointwise, str] = {
    ir.Pointwise(U * slope, (U, X)): KERNELS[name] for name, slope in SLOPES.items()
}
"""The statement of a product, as :func:`~gncompile.program.recompute.recompute` writes it."""
