"""A network as the residuals of its equations: what a residual problem trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import TraceError, expected_got
from ..functions.interpolate import interpolated
from ..functions.plain_torch import plain
from ..graph.model_graph import TracedModel
from ..graph.residuals import Residuals, with_residuals
from ..graph.streams import differentiated
from .equations import GRID, System

UNKNOWNS = "unknowns"


class ResidualNetwork(nn.Module):
    """``r = forward(x, data)``: the residuals ``[N, K]`` at points ``x: [N, d]``.

    ``data: [N, 1 + fields]`` are the number of the term that a sample belongs to, and its fields. ``net`` is
    the user's module, whose parameters stay its own; ``unknowns`` are trainable numbers by name. The grids
    that equations read are buffers.

    What is trained is the graph of :func:`~gncompile.graph.residuals.with_residuals`. ``forward`` computes
    the same by nested autograd, and is what that graph is compared with when it is compiled.
    """

    def __init__(self, net: nn.Module, system: System, unknowns: Mapping[str, float]) -> None:
        super().__init__()
        like = next(net.parameters())
        self.net = net
        self.unknowns = nn.ParameterDict(
            {name: nn.Parameter(like.new_tensor([value])) for name, value in unknowns.items()}
        )
        for name, grid in system.names.grids.items():
            self.register_buffer(f"{GRID}{name}", grid.values[None].to(like))
        self.residuals = system.residuals({name: f"{UNKNOWNS}.{name}" for name in unknowns})

    def forward(self, x: Tensor, data: Tensor) -> Tensor:
        of = self.residuals
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            with LayerNormWrittenOut():
                u = self.net(x)
            values = {symbol: x[:, i] for symbol, i in of.coordinates.items()}
            values |= {symbol: data[:, i] for symbol, i in of.columns.items()}
            values |= {s: self.unknowns[s.name].expand(len(x)) for s in of.unknowns}
            for symbol, (stream, output) in of.streams.items():
                terms = of.wanted[stream - 1].terms if stream else (((), 1.0),)
                parts = (w * reduce(slope(x), by, u[:, output]) for by, w in terms)
                values[symbol] = sum(parts, x.new_zeros(len(x)))
            for symbol, read in of.lookups.items():
                places = [plain(place, values).expand(1, len(x)) for place in read.places]
                values[symbol] = interpolated(read.of, self.get_buffer(read.grid), places)[0]
            return torch.stack([plain(e, values).expand(len(x)) for e in of.expressions], dim=1)


class LayerNormWrittenOut(TorchFunctionMode):
    """``layer_norm`` by its formula: torch's third derivatives are wrong (2.13: they do not commute)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    y = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def slope(x: Tensor):  # type: ignore[no-untyped-def]
    """``(v, i) -> ∂v/∂x_i`` of numbers ``v: [N]`` that each depend on a row of ``x`` alone."""

    def by(v: Tensor, i: int) -> Tensor:
        if not v.requires_grad:
            return torch.zeros_like(v)
        (found,) = torch.autograd.grad(v.sum(), x, create_graph=True, materialize_grads=True)
        return found[:, i]

    return by


class Inside(nn.Module):
    """The user's module, its parameters named as :class:`ResidualNetwork` names them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def residual_graph(
    network: ResidualNetwork, traced: TracedModel, residuals: Residuals | None = None
) -> TracedModel:
    """The graph of the network's residuals, or of others, from that of :class:`Inside`."""
    residuals = residuals or network.residuals
    names = [symbol.name for symbol in residuals.coordinates]
    unknowns = {f"{UNKNOWNS}.{name}": p for name, p in network.unknowns.items()}
    traced = differentiated(traced, residuals.wanted, names)
    return replace(
        traced,
        graph=with_residuals(traced.graph, residuals),
        parameters={**traced.parameters, **unknowns},
        constants={**traced.constants, **dict(network.named_buffers(recurse=False))},
    )


def check_network(net: nn.Module, system: System, example: Tensor) -> None:
    """Raise :class:`TraceError` unless the module takes ``[N, inputs]`` and gives ``[N, outputs]``."""
    names = system.names
    try:
        with torch.no_grad():
            u = net(example)
    except Exception as error:
        raise TraceError(
            f"the network fails on points {list(example.shape)}: {type(error).__name__}: {error}",
            where=f"inputs={', '.join(names.inputs)}",
            instead="let its forward take one tensor [N, inputs], a column for each name",
        ) from error
    wanted = [len(example), len(names.outputs)]
    if not isinstance(u, Tensor) or list(u.shape) != wanted:
        found = list(u.shape) if isinstance(u, Tensor) else type(u).__name__
        raise TraceError(
            f"the network's output is no column for each of {', '.join(names.outputs)}\n"
            + expected_got(wanted, found),
            where="outputs of the residuals",
            instead="name all outputs, or let forward return [N, outputs]",
        )
