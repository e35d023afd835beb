"""Exact factors of a network by ``torch.func``, from its graph as plain torch functions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import jacrev
from torch.nn import functional

from ..graph.layers import Layer, LayerOp
from ..graph.nodes import Node
from ..graph.torch_network import Network


def factor_pair(
    layer: Layer, moments: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Q and Ḡ of a layer from those of its sides; of tied weights the marginals of both sides' sum."""
    q, g = moments[layer.name], blocks[layer.name]
    if layer.mirror is None:
        return q, g.diagonal().diag() if layer.diagonal else g
    g_tied, q_tied = moments[layer.mirror.name], blocks[layer.mirror.name]
    q_tied = functional.pad(q_tied, [0, len(q) - len(q_tied)] * 2)
    both = torch.kron(g, q) + torch.kron(g_tied, q_tied)
    both = both.unflatten(1, (len(g), len(q))).unflatten(0, (len(g), len(q)))
    g = torch.einsum("iaja->ij", both)
    return torch.einsum("iaib->ab", both) / g.trace(), g


def block_at_places(
    network: Network, node: Node, inputs: tuple[Tensor, ...], curvature: Tensor
) -> Tensor:
    """``(1/N) Σ_n Σ_s J_nsᵀ 𝓗_n J_ns`` of one use; ``curvature`` is 𝓗 ``[N, K, K]``."""
    graph, op = network.traced.graph, node.op
    assert isinstance(op, LayerOp)
    zero = curvature.new_zeros(len(curvature), node.size)
    # samples do not meet, so a sum over them holds each one's own Jacobian
    columns = jacrev(lambda e: network({}, inputs, {node.name: e}).sum(dim=0))(zero)
    places = op.places_in(node.size, [graph[x].size for x in node.inputs])
    last = op.places_last
    jacobian = columns.transpose(0, 1).unflatten(-1, (-1, places) if last else (places, -1))
    spelled = "nkds,nkl,nles->de" if last else "nksd,nkl,nlse->de"
    return torch.einsum(spelled, jacobian, curvature, jacobian) / len(curvature)


def input_moment(layer: Layer, values: Mapping[str, Tensor], samples: int) -> Tensor:
    """``(1/N) Σ_n Σ_s x̄ x̄ᵀ`` over the straight uses of a layer; 1 for a trainable vector."""
    if layer.vector:
        return next(iter(values.values())).new_ones(1, 1)
    rows = []
    for node in layer.straight:
        assert isinstance(node.op, LayerOp)
        a = node.op.input_rows(*(values[x] for x in node.inputs))
        last = a.new_full((*a.shape[:-1], int(layer.homogeneous)), float(node.op.homogeneous))
        rows.append(torch.cat([a, last], dim=-1).flatten(0, 1))
    whole = torch.cat(rows)
    return whole.T @ whole / samples
