"""Products with a slope that are one kernel of torch, made for its own backward pass."""

from __future__ import annotations

from collections.abc import Mapping

from sympy import Expr

from .. import step_program as ir
from ..functions import select
from ..passes.recompute import U, X

SLOPES: Mapping[str, Expr] = {"tanh": 1 - X**2, "sigmoid": X * (1 - X), "relu": select(X, 1, 0)}
"""Slopes in the function's own value x."""

KERNELS = {
    "tanh": "torch.ops.aten.tanh_backward.grad_input({0}, {1}, grad_input={out})",
    "sigmoid": "torch.ops.aten.sigmoid_backward.grad_input({0}, {1}, grad_input={out})",
    "relu": "torch.ops.aten.threshold_backward.grad_input({0}, {1}, 0, grad_input={out})",
}

PRODUCTS: Mapping[ir.Pointwise, str] = {
    ir.Pointwise(U * slope, (U, X)): KERNELS[name] for name, slope in SLOPES.items()
}
"""The statement of a product, as :func:`~gncompile.passes.recompute.recompute` writes it."""
