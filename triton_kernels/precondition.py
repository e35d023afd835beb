"""The Kronecker-factored direction ``Δ = -G⁻¹ ∇ Q⁻¹`` of all layers, as grouped products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .gemm import Settings
from .gemm import cost as gemm_cost
from .grouped_gemm import Problem, grouped_gemm, plan_group
from .launches import Launch, Template, padded_empty
from .settings import Precision, Shape
from .tiles import scaled


@dataclass(frozen=True)
class Layer:
    """One layer's factors: G⁻¹ as ``[]``, ``[d]`` or ``[d, d]``, ∇ ``[d, e]``, Q⁻¹ ``[e, e]``.

    ``out`` and ``scratch`` are like ∇; ``scratch`` holds ``∇ Q⁻¹`` and is needed for a full G⁻¹ only.
    """

    g_inv: Tensor
    grad: Tensor
    q_inv: Tensor
    out: Tensor
    scratch: Tensor | None = None


@Template
def grouped_precondition(
    layers: Sequence[Layer],
    *,
    precision: Precision = "highest",
    settings: Settings | None = None,
) -> list[Launch]:
    """``out = -G⁻¹ ∇ Q⁻¹`` for every layer: two launches where G⁻¹ is full, one for each other kind."""
    found = []
    full = [layer for layer in layers if layer.g_inv.dim() == 2]
    if full:
        scratch = [
            padded_empty(len(layer.grad), layer.grad.shape[1], layer.grad)
            if layer.scratch is None
            else layer.scratch
            for layer in full
        ]
        right = [
            Problem(layer.grad, layer.q_inv, product)
            for layer, product in zip(full, scratch, strict=True)
        ]
        left = [
            Problem(layer.g_inv, product, layer.out)
            for layer, product in zip(full, scratch, strict=True)
        ]
        found += grouped_gemm.launches(plan_group(right, precision=precision, settings=settings))
        found += grouped_gemm.launches(
            plan_group(left, precision=precision, settings=settings), alpha=-1.0
        )
    for dimensions in (0, 1):
        problems = [
            Problem(
                layer.grad,
                layer.q_inv,
                layer.out,
                epilogue_inputs=(layer.g_inv[:, None] if dimensions else layer.g_inv,),
            )
            for layer in layers
            if layer.g_inv.dim() == dimensions
        ]
        if problems:
            found += grouped_gemm.launches(
                plan_group(problems, precision=precision, settings=settings),
                alpha=-1.0,
                epilogue=scaled,
            )
    return found


def grouped_precondition_reference(layers: Sequence[Layer]) -> None:
    """:func:`grouped_precondition` in plain torch."""
    for layer in layers:
        product = layer.grad @ layer.q_inv
        if layer.g_inv.dim() == 2:
            product = layer.g_inv @ product
        elif layer.g_inv.dim() == 1:
            product = layer.g_inv[:, None] * product
        else:
            product = layer.g_inv * product
        layer.out.copy_(-product)


def cost(rows: int, columns: int, itemsize: int = 4) -> tuple[int, int]:
    """FLOPs and bytes of one layer with a full G⁻¹ and a gradient ``[rows, columns]``."""
    first = gemm_cost(Shape(rows, columns, columns), itemsize)
    second = gemm_cost(Shape(rows, columns, rows), itemsize)
    return first[0] + second[0], first[1] + second[1]
