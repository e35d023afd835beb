"""Q and Ḡ (*expand*) of weights with several uses at places, read off their definition.

Jacobians are ``torch.func``'s, patches those of plain convolutions with one-hot kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mixed_networks import CONVOLUTIONS, TRANSPOSED, Used
from oracles import congruence, output_hessian, per_sample_jacobian
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gncompile.graph.layers import Layer


@dataclass
class Use:
    """One call of a module that holds a matrix: its input, the size of its output, and whose matrix it is."""

    layer: str
    module: nn.Module
    call: int
    x: Tensor
    size: torch.Size


def owners(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with a matrix."""
    kinds = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *TRANSPOSED)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def seen(model: nn.Module, x: Tensor) -> list[Use]:
    """Every use of a matrix the right way round, which one of 1 × 1 always is: factors are made of those."""
    names = {module: name for name, module in owners(model).items()}
    found: list[Use] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        owner = module.of[0] if isinstance(module, Used) else module
        if owner is module or not module.transposed or owner.weight.numel() == 1:
            call = sum(use.module is module for use in found)
            found.append(Use(names[owner], module, call, inputs[0].detach(), y.shape))

    watched = [m for m in model.modules() if m in names or isinstance(m, Used)]
    handles = [m.register_forward_hook(note) for m in watched]
    model(x)
    for handle in handles:
        handle.remove()
    return found


@contextmanager
def shifted(use: Use, by: Tensor) -> Iterator[None]:
    """Inside, what one call of a module gives has ``by`` added to it."""
    calls = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return y + by.reshape(use.size) if calls == use.call + 1 else y

    handle = use.module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def patches(conv: nn.Module, grids: Tensor) -> Tensor:
    """What the kernel of a convolution meets, ``[B, groups, T, in/groups · k]``, by one-hot kernels."""
    plain = (F.conv1d, F.conv2d, F.conv3d)[len(conv.kernel_size) - 1]
    padding = conv.padding
    if getattr(conv, "padding_mode", "zeros") != "zeros":
        sides = [side for p in reversed(conv.padding) for side in (p, p)]
        grids, padding = F.pad(grids, sides, mode=conv.padding_mode), 0
    by_group = grids.unflatten(1, (conv.groups, -1)).flatten(0, 1)
    columns = by_group.shape[1] * math.prod(conv.kernel_size)
    one_hot = torch.eye(columns, dtype=grids.dtype).reshape(columns, -1, *conv.kernel_size)
    found = plain(by_group, one_hot, None, conv.stride, padding, conv.dilation)
    return found.flatten(2).mT.unflatten(0, (-1, conv.groups))


def sums(use: Use, columns: Tensor, homogeneous: bool) -> tuple[Tensor, Tensor, int]:
    """``Σ_n Σ_s x̄ x̄ᵀ``, ``Σ_n Σ_s Σ_k c cᵀ`` and S of one use; ``columns: [N, K, *size of the output]``."""
    module, x = use.module, use.x
    if isinstance(module, TRANSPOSED):
        g, rows = module.groups, x.flatten(2)
        q = torch.einsum("nit,njt->ij", rows, rows)
        c = patches(module, columns.flatten(0, 1))
        return within(q, g), torch.einsum("bgti,bgtj->ij", c, c), g * rows.shape[-1]
    if isinstance(module, CONVOLUTIONS):
        rows = patches(module, x)
        c, g = columns.flatten(3), module.groups
        outer = within(torch.einsum("nkit,nkjt->ij", c, c), g)
        places = g * c.shape[-1]
    else:
        rows = one_hot(module, x).to(columns.dtype) if isinstance(module, nn.Embedding) else x
        rows = rows.reshape(len(rows), -1, rows.shape[-1])
        places = rows.shape[1]
        c = columns.flatten(2).unflatten(2, (places, -1))
        outer = torch.einsum("nksi,nksj->ij", c, c)
    if homogeneous:
        coordinate = 0.0 if isinstance(module, Used) else 1.0
        rows = torch.cat([rows, torch.full_like(rows[..., :1], coordinate)], dim=-1)
    rows = rows.flatten(0, -2)
    return rows.mT @ rows, outer, places


def one_hot(module: nn.Embedding, x: Tensor) -> Tensor:
    """Rows that choose; the padding's row of the table is a constant."""
    rows = F.one_hot(x, module.num_embeddings)
    if module.padding_idx is not None:
        rows[..., module.padding_idx] = 0
    return rows


def within(matrix: Tensor, groups: int) -> Tensor:
    """The blocks of channels of one group."""
    group = torch.arange(groups).repeat_interleave(len(matrix) // groups)
    return torch.where(group[:, None] == group, matrix, 0.0)


def factors(
    model: nn.Module, loss: str | nn.Module, x: Tensor, y: Tensor, layers: Mapping[str, Layer]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Q and Ḡ (*expand*) of these layers; whether a bias is a column of W̄ or a vector is as they say."""
    n, top = len(x), output_hessian(loss, model(x), y)
    values, vectors = torch.linalg.eigh(top)
    root = vectors * values.clamp(min=0).sqrt()[:, None]  # 𝓗 = R Rᵀ
    parts: dict[str, list[tuple[Tensor, Tensor, int]]] = {}
    for use in seen(model, x):

        def outputs(e: Tensor, use: Use = use) -> Tensor:
            with shifted(use, e):
                return model(x)  # type: ignore[no-any-return]

        zero = top.new_zeros(n, use.size[1:].numel())
        columns = (root.mT @ per_sample_jacobian(outputs, zero)).unflatten(-1, use.size[1:])
        if use.layer in layers:
            homogeneous = layers[use.layer].homogeneous
            parts.setdefault(use.layer, []).append(sums(use, columns, homogeneous))
    found = {}
    for layer, uses in parts.items():
        q, g, places = (sum(column) for column in zip(*uses, strict=True))
        found[layer] = q / n, g / (n * places)
    vectors = {layer: record.weight for layer, record in layers.items() if record.vector}
    return found | {layer: vector_block(model, name, x, top) for layer, name in vectors.items()}


def vector_block(model: nn.Module, name: str, x: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """``Q = 1`` and the Gauss-Newton block of one parameter."""
    p = model.get_parameter(name)

    def outputs(v: Tensor) -> Tensor:
        return called(model, {name: v.reshape(p.shape)}, x)

    jacobian = jacrev(outputs)(p.detach().flatten())
    return top.new_ones(1, 1), congruence(jacobian, top).mean(dim=0)


def called(model: nn.Module, changed: dict[str, Tensor], x: Tensor) -> Tensor:
    """The output at other parameters; with ``tie_weights`` torch would not restore a module called twice."""
    z: Tensor = functional_call(model, changed, (x,), tie_weights=False)
    return z


def tangent(model: nn.Module, x: Tensor, direction: dict[str, Tensor]) -> Tensor:
    """The derivative of the output along a direction; torch's fused attention has none forwards."""
    at = {name: p.detach() for name, p in model.named_parameters() if name in direction}
    with sdpa_kernel(SDPBackend.MATH):
        r: Tensor = jvp(lambda p: called(model, p, x), (at,), (direction,))[1]
    return r
