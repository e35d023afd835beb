"""What the device reaches on this day: matrix products by type, and a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .clock import Clock
from .rows import Entry, Prepared

COPY = "copy"
TF32 = "torch.mm, float32 by TF32"
FLOAT32 = "torch.mm, float32"
KINDS = {
    TF32: (torch.float32, True),
    FLOAT32: (torch.float32, False),
    "torch.mm, bfloat16": (torch.bfloat16, False),
    "torch.mm, float64": (torch.float64, False),
}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether torch may multiply float32 in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def entries(clock: Clock, size: int, copied: int) -> Iterator[Entry]:
    """Products of random ``size × size`` matrices, and a copy of ``copied`` float32 numbers."""
    for name, (dtype, allowed) in KINDS.items():
        yield Entry(name, lambda d=dtype, a=allowed: _product(clock, size, d, a))  # type: ignore
    yield Entry(COPY, lambda: _copy(clock, copied))


def _product(clock: Clock, size: int, dtype: torch.dtype, allowed: bool) -> Prepared:
    a, b = (torch.randn(size, size, device=clock.device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    with tf32(allowed):  # what a graph captured is not changed by the setting afterwards
        call = clock.captured(lambda: torch.mm(a, b, out=out))
    return Prepared(call, 2.0 * size**3, 3.0 * a.nbytes)


def _copy(clock: Clock, count: int) -> Prepared:
    source = torch.randn(count, device=clock.device)
    target = torch.empty_like(source)
    return Prepared(lambda: target.copy_(source), bytes=2.0 * source.nbytes)
