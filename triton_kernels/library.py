"""Torch's libraries in the place of a launch: cuBLAS and cuDNN on a CUDA device.

A product is worth trying where nothing is fused with it; elsewhere results would be read and written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        with _float32(self.precision):
            if self.bias is None:
                torch.matmul(self.a, self.b, out=self.out)
            elif self.out.dim() == 2:
                torch.addmm(self.bias, self.a, self.b, out=self.out)
            else:
                torch.matmul(self.a, self.b, out=self.out)
                self.out.add_(self.bias)


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
    return LibraryProduct(left, right, out, bias, _word(precision))


@dataclass(frozen=True)
class LibraryCall:
    """A function of tensors, the results among them, that is made of the library's products."""

    function: Callable[..., object]
    operands: tuple[object, ...]
    precision: str

    def run(self) -> None:
        """Call it on the current stream."""
        with _float32(self.precision):
            self.function(*self.operands)


def library_call(
    function: Callable[..., object], *operands: object, precision: Precision = "highest"
) -> LibraryCall:
    """``function(*operands)`` as a launch; of the precision the same holds as for a product."""
    return LibraryCall(function, operands, _word(precision))


def _word(precision: Precision) -> str:
    return "tf32" if precision == "medium" else "ieee"


@contextmanager
def _float32(precision: str) -> Iterator[None]:
    """How the libraries multiply float32, ``ieee`` or ``tf32``, whatever torch was told."""
    libraries = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in libraries]
    for each in libraries:
        each.fp32_precision = precision
    try:
        yield
    finally:
        for each, word in zip(libraries, before, strict=True):
            each.fp32_precision = word
