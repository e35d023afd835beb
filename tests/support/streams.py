"""Derivatives of a network's outputs by its inputs, by nested ``torch.func.jvp``, and networks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from mixed_networks import Used
from torch import Tensor, nn
from torch.func import jvp

from gncompile.graph.model_graph import TracedModel
from gncompile.graph.streams import Derivative
from gncompile.graph.torch_network import Network

Function = Callable[[Tensor], Tensor]


def laplacian(features: int) -> Derivative:
    return Derivative(tuple(((i, i), 1.0) for i in range(features)))


def nested(f: Function, x: Tensor, index: Sequence[int]) -> Tensor:
    """``∂^index f`` at ``x: [N, d]``, one jvp inside the other."""
    for i in index:
        along = torch.zeros_like(x)
        along[:, i] = 1

        def inner(t: Tensor, f: Function = f, along: Tensor = along) -> Tensor:
            slope: Tensor = jvp(f, (t,), (along,))[1]
            return slope

        f = inner
    return f(x)


def derived(f: Function, x: Tensor, wanted: Sequence[Derivative]) -> Tensor:
    """``[f | wanted_1 f | …]``."""
    sums = (sum(w * nested(f, x, index) for index, w in each.terms) for each in wanted)
    return torch.cat([f(x), *sums], dim=1)  # type: ignore[arg-type]


def value(traced: TracedModel, x: Tensor) -> Tensor:
    """What a graph computes, in plain torch."""
    widths = [node.size for node in traced.graph.inputs]
    return Network(traced)({}, x.split(widths, dim=1))


class Taylor(nn.Module):
    """``[u | Δu]`` of a chain of tanh layers, written out; a layer's second use is a :class:`Used`."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        sizes = pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)
        self.again = nn.ModuleList(Used(layer, transposed=False) for layer in self.layers)

    def forward(self, x: Tensor) -> Tensor:
        d, last = x.shape[1], len(self.layers) - 1
        s = torch.eye(d, dtype=x.dtype).expand(len(x), d, d)
        for number, (layer, again) in enumerate(zip(self.layers, self.again, strict=True)):
            h, s = layer(x), again(s if s.shape[1] > 1 else s[:, 0])
            if number == last:
                break
            x = torch.tanh(h)
            slope = 1 - x * x
            top = -2 * x * slope * s[:, :d].square().sum(dim=1)
            if s.shape[1] > d:
                top = top + slope * s[:, d]
            firsts = [] if number == last - 1 else [slope[:, None] * s[:, :d]]
            s = torch.cat([*firsts, top[:, None]], dim=1)
        return torch.cat([h, s], dim=1)

    def plain(self) -> nn.Sequential:
        """The chain itself, of the same layers."""
        parts = [part for layer in self.layers for part in (layer, nn.Tanh())]
        return nn.Sequential(*parts[:-1])
