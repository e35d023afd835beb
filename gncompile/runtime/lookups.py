"""Lookups of whole numbers, which lie as numbers of the program's dtype; see ``program/lookups.py``."""

from __future__ import annotations

import torch
from torch import Tensor


def lookup(table: Tensor, indices: Tensor, padding: int | None = None, *, out: Tensor) -> None:
    """``out[n, p] ← W[i_np]``, 0 where that is ``padding``; NaN where the index is."""
    flat = indices.reshape(-1)
    rows = table.index_select(0, flat.nan_to_num().long())
    torch.add(rows, flat[:, None], alpha=0, out=out.view(rows.shape))
    if padding is not None:
        out.masked_fill_((indices == padding)[..., None], 0)


def lookup_gradient(indices: Tensor, g: Tensor, padding: int | None, out: Tensor) -> None:
    """``out[i] ← (1/N) Σ g_np`` over the places that look up row i."""
    rows = g.reshape(-1, g.shape[-1])
    out.zero_().index_add_(0, indices.reshape(-1).nan_to_num().long(), rows, alpha=1 / len(indices))
    if padding is not None:
        out[padding] = 0


def counts(indices: Tensor, padding: int | None, out: Tensor) -> None:
    """``out[i] ←`` the mean number of places of a sample that hold i; NaN where an index is."""
    flat = indices.reshape(-1)
    ones = torch.add(torch.ones_like(flat), flat, alpha=0)
    out.zero_().index_add_(0, flat.nan_to_num().long(), ones, alpha=1 / len(indices))
    if padding is not None:
        out[padding] = 0


def one_hot(indices: Tensor, out: Tensor) -> None:
    """``out[n, p, k] ← 1`` where ``k = i_np``, else 0."""
    out.zero_().scatter_(-1, indices.nan_to_num().long()[..., None], 1.0)
    out.add_(indices[..., None], alpha=0)
