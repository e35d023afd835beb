"""The whole Gauss-Newton matrix of a compiled network on a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..graph.dropout import without_dropout
from ..pipeline import gauss_newton_program
from ..runtime.executable import Executable
from .batches import Target
from .compiled import Compiled


def gauss_newton(
    compiled: Compiled, x: Tensor | tuple[Tensor, ...], y: Target, names: Iterable[str]
) -> Tensor:
    """``G = (1/N) Σ_n J_nᵀ 𝓗_n J_n`` at the present parameters, ``[P, P]``, without dropout.

    Rows and columns are the numbers of the parameters ``names``, one after the other, each row by row. Costs
    ``N K P²`` besides a backward pass for each of the K outputs.
    """
    traced, own = compiled.traced, compiled.executable
    executable = Executable(
        gauss_newton_program(without_dropout(traced.graph), compiled.loss), traced, compiled.loss,
        backend=own.backend, precision=own.memory.precision, dtype=own.memory.dtype,
        device=own.memory.device, memory_budget=own.memory_budget,
    )  # fmt: skip
    executable.load(*compiled.reader.pair(x, y))
    executable.run(*executable.program.phases)
    g = executable.result("gauss_newton")
    first, places = 0, dict[str, Tensor]()
    for name, layer in traced.graph.layers.items():
        size = math.prod(layer.shape)
        places[name] = torch.arange(first, first + size, device=g.device).view(layer.shape)
        first += size
    place = compiled.split(places)
    order = torch.cat([place[name].flatten() for name in names])
    return g[order][:, order]
