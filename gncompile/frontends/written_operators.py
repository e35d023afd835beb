"""Operators that are written out in others, before they are translated: exact, and derived like these.

===============  =====================================================================
operator         is
===============  =====================================================================
``logsumexp``    ``x_1 − log_softmax(x)_1``
``max`` (dim)    a maximum pooling with one window: of equal values the first one counts
``amax``         the mean of the values that equal the maximum, each of which moves it
``min, amin``    ``−max(−x)``
``var``, ``std`` the mean square of ``x − mean(x)``, by n − correction; its root
``prod``         a product of up to :data:`FACTORS` selections
===============  =====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

FACTORS = 32
"""A product of more features is an expression that takes long to derive."""

aten = torch.ops.aten


def _last(x: Tensor, dims: Sequence[int]) -> Tensor:
    """``x`` with these dimensions as one, the last."""
    moved = x.movedim(list(dims), list(range(-len(dims), 0)))
    return moved.flatten(-len(dims)) if len(dims) > 1 else moved


def _kept(y: Tensor, x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    """``y``, which lacks these dimensions of ``x``, with ones there if they are kept."""
    if not keepdim:
        return y
    for dim in sorted(d % x.ndim for d in dims):
        y = y.unsqueeze(dim)
    return y


def logsumexp(x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    """Over dimensions."""
    rows = _last(x, dim)
    first = rows.narrow(-1, 0, 1) - functional.log_softmax(rows, -1).narrow(-1, 0, 1)
    return _kept(first.squeeze(-1), x, dim, keepdim)


def maximum(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Along a dimension, with the places."""
    rows = _last(x, [dim])
    shape, size = rows.shape[:-1], rows.shape[-1]
    grid = rows.reshape(shape[0], math.prod(shape[1:]), size)
    y = functional.max_pool1d(grid, size).reshape(shape)
    return _kept(y, x, [dim], keepdim), x.argmax(dim, keepdim)


def minimum(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Along a dimension, with the places."""
    y, places = maximum(-x, dim, keepdim)
    return -y, places


def greatest(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Over dimensions; of equal values torch gives each the same share of the gradient."""
    dims = list(dim) or list(range(x.ndim))
    rows = _last(x, dims)
    there = (rows >= maximum(rows, -1, keepdim=True)[0]).to(x.dtype)
    return _kept((rows * there).sum(-1) / there.sum(-1), x, dims, keepdim)


def variance(
    x: Tensor, dim: Sequence[int] | None = None, correction: float | None = 1, keepdim: bool = False
) -> Tensor:
    """Over dimensions."""
    dims = list(range(x.ndim)) if dim is None else list(dim)
    size = math.prod(x.shape[d] for d in dims)
    centred = x - x.mean(dims, keepdim=True)
    return centred.square().sum(dims, keepdim=keepdim) / (
        size - (1 if correction is None else correction)
    )


def product(x: Tensor, dim: int, keepdim: bool = False, dtype: torch.dtype | None = None) -> Any:
    """Along a dimension; left as it is where that is long."""
    if x.shape[dim] > FACTORS or dtype not in (None, x.dtype):
        return NotImplemented
    y, *rest = x.unbind(dim)
    for factor in rest:
        y = y * factor
    return _kept(y, x, [dim], keepdim)


WRITTEN: Mapping[Any, Callable[..., Any]] = {
    aten.logsumexp.default: logsumexp,
    aten.max.dim: maximum,
    aten.min.dim: minimum,
    aten.amax.default: greatest,
    aten.amin.default: lambda x, dim=(), keepdim=False: -greatest(-x, dim, keepdim),
    aten.var.correction: lambda x, dim=None, *, correction=None, keepdim=False: variance(
        x, dim, correction, keepdim
    ),
    aten.var.dim: lambda x, dim, unbiased=True, keepdim=False: variance(
        x, dim, int(unbiased), keepdim
    ),
    aten.std.correction: lambda x, dim=None, *, correction=None, keepdim=False: variance(
        x, dim, correction, keepdim
    ).sqrt(),
    aten.std.dim: lambda x, dim, unbiased=True, keepdim=False: variance(
        x, dim, int(unbiased), keepdim
    ).sqrt(),
    aten.prod.dim_int: product,
}
"""What stands for each operator."""
