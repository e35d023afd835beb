"""Factor kernels of one large square layer, against what ``torch.mm`` reaches at as many flops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gncompile.triton_kernels import congruence as congruences
from gncompile.triton_kernels import syrk as moments
from gncompile.triton_kernels.launches import Launch, run
from gncompile.triton_kernels.settings import Precision, Shape

from .clock import Clock
from .rates import tf32
from .rows import Entry, Prepared

PRECISIONS: dict[str, tuple[torch.dtype, Precision]] = {
    "float32 high (3 × TF32)": (torch.float32, "high"),
    "float32 medium (TF32)": (torch.float32, "medium"),
    "float32 highest": (torch.float32, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
}


def entries(clock: Clock, size: int, samples: int) -> Iterator[Entry]:
    """``Q`` and one KFRA step of a layer ``size × size`` on ``samples``, in each precision.

    The symmetric kernels count one triangle: their rate is comparable with that of a plain product only
    where they save the other.
    """
    what = f"d={size} N={samples}"
    for words, (dtype, precision) in PRECISIONS.items():
        yield Entry(f"syrk {what}, {words}", _of(_syrk, clock, size, samples, dtype, precision))
        yield Entry(
            f"congruence {what}, {words}", _of(_congruence, clock, size, samples, dtype, precision)
        )
    for words, allowed, dtype in (
        ("TF32", True, torch.float32),
        ("float32", False, torch.float32),
        ("bfloat16", False, torch.bfloat16),
    ):
        yield Entry(
            f"torch.mm(a.T, a) {what}, {words}", _of(_gram, clock, size, samples, dtype, allowed)
        )
        yield Entry(
            f"torch.mm congruence {what}, {words}",
            _of(_plain_congruence, clock, size, samples, dtype, allowed),
        )


def _of(prepare: Callable[..., Prepared], *arguments: object) -> Callable[[], Prepared]:
    return lambda: prepare(*arguments)


def _operands(clock: Clock, size: int, samples: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    def normal(rows: int) -> Tensor:
        return torch.randn(rows, size, device=clock.device, dtype=dtype)

    g = normal(size)
    return normal(samples), normal(size) / size**0.5, g @ g.T / size


def _syrk(
    clock: Clock, size: int, samples: int, dtype: torch.dtype, precision: Precision
) -> Prepared:
    a, *_ = _operands(clock, size, samples, dtype)
    out = torch.empty(size, size, device=clock.device)
    launches = moments.syrk.launches(a, out, alpha=1 / samples, precision=precision)
    flops, moved = moments.syrk_cost(Shape(size, size, samples), itemsize=dtype.itemsize)
    return _kernels(clock, launches, flops, moved)


def _congruence(
    clock: Clock, size: int, samples: int, dtype: torch.dtype, precision: Precision
) -> Prepared:
    b, w, g = _operands(clock, size, samples, dtype)
    out = torch.empty(size, size, device=clock.device)
    launches = congruences.congruence.launches(w, g, b, out, precision=precision)
    shape = Shape(size, size, samples)
    flops, moved = congruences.cost(shape, inner=size, itemsize=dtype.itemsize)
    return _kernels(clock, launches, flops, moved)


def _kernels(clock: Clock, launches: list[Launch], flops: float, moved: float) -> Prepared:
    return Prepared(clock.captured(lambda: run(launches)), flops, moved)


def _gram(clock: Clock, size: int, samples: int, dtype: torch.dtype, allowed: bool) -> Prepared:
    a, *_ = _operands(clock, size, samples, dtype)
    out = torch.empty(size, size, device=clock.device, dtype=dtype)
    with tf32(allowed):
        call = clock.captured(lambda: torch.mm(a.T, a, out=out))
    return Prepared(call, 2.0 * samples * size**2, float(a.nbytes + out.nbytes))


def _plain_congruence(
    clock: Clock, size: int, samples: int, dtype: torch.dtype, allowed: bool
) -> Prepared:
    b, w, g = _operands(clock, size, samples, dtype)

    def products() -> Tensor:
        return (w.T @ (g @ w)) * (b.T @ b)

    with tf32(allowed):
        call = clock.captured(products)
    moved = (9 * size * size + samples * size) * dtype.itemsize
    return Prepared(call, 2.0 * size**2 * (2 * size + samples), float(moved))
