"""Kronecker factors of one layer's curvature, and what can be computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import CompileError, expected_got, visible


@dataclass(frozen=True)
class KroneckerFactors:
    """``E[G-block of W̄] ≈ Ḡ ⊗ Q`` for one affine layer (docs/mathematics.md#curvature-factors).

    ``input``: Q = E[ā āᵀ], ``[in+1, in+1]`` with the homogeneous coordinate last (``[in, in]`` without a
    trained bias). ``output``: Ḡ, ``[out, out]``. Both are symmetric and positive semidefinite (``output`` of
    the Hessian need not be), divided by N, in the order of torch's row-major ``W̄ = [W, b]``: out index slow.
    """

    layer: str
    input: Tensor
    output: Tensor

    def dense(self) -> Tensor:
        """``Ḡ ⊗ Q``: ``[out·(in+1), out·(in+1)]``. Memory is the square of the layer's parameter count."""
        return torch.kron(self.output, self.input)

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """``(Ḡ ⊗ Q + damping · I)⁻¹ v`` for ``v: [out, in+1]``, by eigendecompositions: O(out³ + in³)."""
        shape = (self.output.shape[0], self.input.shape[0])
        if tuple(v.shape) != shape:
            raise CompileError(
                f"v has the wrong shape for layer {self.layer!r}\n{expected_got(shape, tuple(v.shape))}"
            )
        if v.dtype != self.output.dtype:
            raise CompileError(
                f"v is {v.dtype}, and the factors of layer {self.layer!r} are {self.output.dtype}",
                instead="convert v with .to(dtype), or compute the factors with that dtype",
            )
        (g, u_g), (q, u_q) = self._eigen
        return u_g @ ((u_g.T @ v @ u_q) / (torch.outer(g, q) + damping)) @ u_q.T

    def logdet(self, damping: float) -> Tensor:
        """``log det(Ḡ ⊗ Q + damping · I)``, a scalar."""
        (g, _), (q, _) = self._eigen
        return torch.log(torch.outer(g, q) + damping).sum()

    def __repr__(self) -> str:
        g, q = len(self.output), len(self.input)
        dtype = str(self.output.dtype).removeprefix("torch.")
        return visible(f"KroneckerFactors({self.layer}: Ḡ [{g}, {g}] ⊗ Q [{q}, {q}], {dtype})")

    @cached_property
    def _eigen(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        output, inputs = torch.linalg.eigh(self.output), torch.linalg.eigh(self.input)
        return (output[0], output[1]), (inputs[0], inputs[1])
