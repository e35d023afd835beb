"""The reference for operations on grids: each by its definition, points picked by number and products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InternalError
from ..graph.windows import Geometry, Window
from ..program import convolutions as grids


def windowed(op: grids.Windowed, v: list[Tensor]) -> Tensor:
    """``op(v)``."""
    match op:
        case grids.Convolve(g):
            h = torch.einsum("goc,...tgc->...got", _by_group(v[1], g), _patches(v[0], g)).flatten(
                -3
            )
            return h if len(v) < 3 else h + v[2].repeat_interleave(g.places)
        case grids.ConvolveAdjoint(g):
            vectors = v[0].unflatten(-1, (g.groups, -1, g.places))
            taps = torch.einsum("goc,...got->...gct", _by_group(v[1], g), vectors)
            taps = taps.unflatten(-2, (-1, len(g.window.taps))).transpose(-1, -2)
            return _summed(taps.flatten(-4, -3), g.window).flatten(-2)
        case grids.ConvolveGradient(g, homogeneous, coordinate):
            vectors = v[0].unflatten(-1, (g.groups, -1, g.places))
            gradient = torch.einsum("ngot,ntgc->goc", vectors, _patches(v[1], g)).flatten(0, 1)
            bias = coordinate * vectors.sum(dim=(0, -1)).reshape(-1, 1)
            whole = torch.cat([gradient, bias], dim=1) if homogeneous else gradient
            return whole / v[0].shape[0]
        case grids.Patches(g):
            rows = _patches(v[0], g).transpose(-2, -3).flatten(-3, -2)
            return rows.movedim(-1, 0)
        case grids.MaxPool(w):
            return _taps(v[0], w, -math.inf).amax(dim=-1).flatten(-2)
        case grids.SumPool(w):
            return _taps(v[0], w, 0.0).sum(dim=-1).flatten(-2)
        case grids.Winners(w):
            taps = _taps(v[0], w, -math.inf)
            most = taps.amax(dim=-1, keepdim=True)
            return (taps == most).to(v[0].dtype).argmax(dim=-1).flatten(-2).to(v[0])
        case grids.Pick(w):
            taps = _taps(v[0], w, 0.0)
            return (taps * _chosen(v[1], w)).sum(dim=-1).flatten(-2)
        case grids.Spread(w):
            vectors = v[0].unflatten(-1, (-1, math.prod(w.places)))[..., None]
            kept = _chosen(v[1], w) if len(v) > 1 else torch.ones(len(w.taps)).to(v[0])
            return _summed(vectors * kept, w).flatten(-2)
        case grids.BlockDiagonal(blocks):
            group = torch.arange(blocks, device=v[0].device).repeat_interleave(len(v[0]) // blocks)
            return torch.where(group[:, None] == group, v[0], 0.0)
    raise InternalError(f"the reference backend does not know {op}")


def _taps(x: Tensor, w: Window, fill: float) -> Tensor:
    """What is behind every tap: ``[.., C·P] → [.., C, T, k]``, ``fill`` outside the grid."""
    channels = x.unflatten(-1, (-1, math.prod(w.size)))
    sources = torch.tensor(w.sources, device=x.device)
    return torch.where(sources >= 0, channels[..., sources.clamp(min=0)], fill)


def _summed(taps: Tensor, w: Window) -> Tensor:
    """Its adjoint: ``[.., C, T, k] → [.., C, P]``."""
    sources = torch.tensor(w.sources, device=taps.device).flatten()
    inside = (sources >= 0).nonzero().flatten()
    grid = taps.new_zeros(*taps.shape[:-2], math.prod(w.size))
    return grid.index_add_(-1, sources[inside], taps.flatten(-2)[..., inside])


def _chosen(winners: Tensor, w: Window) -> Tensor:
    """``[.., C, T, k]``: 1 at the winner of every window."""
    numbers = winners.unflatten(-1, (-1, math.prod(w.places)))
    return (numbers[..., None] == torch.arange(len(w.taps), device=winners.device)).to(winners)


def _patches(x: Tensor, g: Geometry) -> Tensor:
    """``[.., T, groups, columns]``."""
    taps = _taps(x, g.window, 0.0).unflatten(-3, (g.groups, -1))
    return taps.movedim(-2, -4).flatten(-2)


def _by_group(weight: Tensor, g: Geometry) -> Tensor:
    """``[groups, out / groups, columns]``."""
    return weight.unflatten(0, (g.groups, -1))
