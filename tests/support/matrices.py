"""Matrices inside buffers of NaN: whatever is read or written outside of them shows."""

from __future__ import annotations

import torch
from torch import Tensor

# Sums of at most 200 products of numbers of size one. Rounding each of them to float32 costs about
# √200 · 6e-8 of the result; bfloat16 operands are multiplied exactly and summed in float32. A lost or
# doubled term shows at 1e-3 and above. Results stored as bfloat16 are rounded to 8 bits.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 5e-6}
STORED_BFLOAT16 = 2**-8


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32, pad: int = 16) -> Tensor:
    """Normal numbers in a buffer whose rows are multiples of ``pad``, NaN before, between and after them."""
    stride = -(-columns // pad) * pad
    buffer = torch.full((rows + 2, stride), torch.nan, dtype=dtype)
    view = buffer[1 : rows + 1, :columns]
    view.copy_(torch.randn(rows, columns, dtype=torch.float64))
    return view


def result(rows: int, columns: int, dtype: torch.dtype = torch.float32, pad: int = 16) -> Tensor:
    """A matrix still to be written: NaN."""
    return matrix(rows, columns, dtype, pad).fill_(torch.nan)


def symmetric(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A symmetric matrix of normal numbers."""
    view = matrix(size, size, dtype)
    return view.copy_((view + view.mT) / 2)


def assert_surroundings_untouched(view: Tensor) -> None:
    """Everything in the buffer of ``view`` but the view itself is still NaN."""
    base = view._base
    assert base is not None
    outside = torch.ones_like(base, dtype=torch.bool)
    outside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
    assert bool(base[outside].isnan().all())
