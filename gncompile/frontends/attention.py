"""``nn.MultiheadAttention`` with the batch first throughout, while a module is exported.

PyTorch's own puts the batch between positions and heads and merges it with the heads. In a graph each row of
every tensor belongs to one sample, so here it is written that way; that both compute the same is checked as
for any module (``agreement``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TraceError


def attention(
    m: nn.MultiheadAttention,
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What ``m(query, key, value, …)`` returns, for ``[N, T, E]``."""
    _check(m, name, query, key_padding_mask, attn_mask)

    def heads(x: Tensor) -> Tensor:
        """``[N, T, E]`` as ``[N, H, T, E / H]``."""
        return x.unflatten(-1, (m.num_heads, m.head_dim)).transpose(1, 2)

    q, k, v = map(heads, _projected(m, query, key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask  # true is a key that is not seen; below, one that is
    dropout = m.dropout if m.training else 0.0
    weights = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) / m.head_dim**0.5
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        weights = F.dropout(scores.softmax(-1), dropout)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout)
    return F.linear(mixed.transpose(1, 2).flatten(2), m.out_proj.weight, m.out_proj.bias), weights


def _projected(
    m: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, ...]:
    """Queries, keys and values; a weight for all three is applied whole, and the parts not meant left out."""
    e = m.embed_dim
    if not m._qkv_same_embed_dim:
        separate = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
        projected = [F.linear(x, w) for x, w in zip((query, key, value), separate, strict=True)]
        if isinstance(m.in_proj_bias, Tensor):
            biases = m.in_proj_bias.chunk(3)
            projected = [x + b for x, b in zip(projected, biases, strict=True)]
        return tuple(projected)
    sources = {id(x): x for x in (query, key, value)}
    whole = {n: F.linear(x, m.in_proj_weight, m.in_proj_bias) for n, x in sources.items()}
    return tuple(whole[id(x)][..., i * e : (i + 1) * e] for i, x in enumerate((query, key, value)))


def _check(
    m: nn.MultiheadAttention,
    name: str,
    query: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> None:
    """Raise :class:`TraceError` for what has no form with one row a sample."""
    found = instead = ""
    if query.dim() != 3:
        found, instead = f"it gets queries of {query.dim()} dimensions", "give it [N, T, E]"
    elif not m.batch_first:
        found = "its first dimension is time, while dimension 0 is the batch"
        instead = "construct it with batch_first=True, and give it [N, T, E]"
    elif key_padding_mask is not None:
        found = "its key_padding_mask differs between samples"
        instead = "add a mask of finite numbers, an input [N, H, T, S], to the scores in a module of your own"
    elif attn_mask is not None and attn_mask.dim() != 2:
        found = "its attn_mask of three dimensions has the batch in it"
        instead = "give it a mask [T, S] for all samples"
    elif m.bias_k is not None or m.add_zero_attn:
        found = "it appends keys and values that do not depend on the input"
        instead = "construct it with add_bias_kv=False and add_zero_attn=False"
    if found:
        raise TraceError(
            f"nn.MultiheadAttention cannot be compiled: {found}",
            where=f"module {name!r}",
            instead=instead,
        )
