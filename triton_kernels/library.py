"""A matrix product by torch's library, cuBLAS on a CUDA device, in the place of a launch.

Worth trying where nothing is fused with the product; elsewhere the results would be read and written again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .settings import Precision


@dataclass(frozen=True)
class LibraryProduct:
    """``out = A B [+ bias]`` of matrices or batches of them."""

    a: Tensor
    b: Tensor
    out: Tensor
    bias: Tensor | None
    precision: str
    """``ieee`` or ``tf32``, as torch calls them."""

    def run(self) -> None:
        """Start the product on the current stream."""
        matmul = torch.backends.cuda.matmul
        before = matmul.fp32_precision
        matmul.fp32_precision = self.precision
        try:
            if self.bias is None:
                torch.matmul(self.a, self.b, out=self.out)
            elif self.out.dim() == 2:
                torch.addmm(self.bias, self.a, self.b, out=self.out)
            else:
                torch.matmul(self.a, self.b, out=self.out)
                self.out.add_(self.bias)
        finally:
            matmul.fp32_precision = before


def library_product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Tensor | None = None,
    precision: Precision = "highest",
) -> LibraryProduct:
    """:func:`~.gemm.gemm` without anything fused.

    At ``high`` the library has no three TF32 products for one and multiplies in IEEE float32.
    """
    left, right = (a.mT if transpose_a else a), (b.mT if transpose_b else b)
    return LibraryProduct(left, right, out, bias, "tf32" if precision == "medium" else "ieee")
