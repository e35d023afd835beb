"""A frozen part of a network that runs as it is, in torch, before the compiled part."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from .model_graph import Node


@dataclass(frozen=True)
class Trunk:
    """``features = module(inputs, tensors)``, without gradients; what nothing trainable reaches.

    ``inputs`` are what the network takes, as :class:`~gncompile.graph.model_graph.Input` nodes; ``tensors``
    the model's own frozen parameters and buffers, so that the trunk follows whatever is written to them.
    The features are the inputs of the compiled graph, by their order.
    """

    inputs: tuple[Node, ...]
    module: fx.GraphModule = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Rows of features ``[N, size]`` of rows of inputs, which the code may write into: it gets copies."""
        rows = zip(inputs, self.inputs, strict=True)
        given = [x.reshape(len(x), *node.shape).clone() for x, node in rows]
        with torch.no_grad():
            found = self.module(*given, *self.tensors)
        return tuple(features.reshape(len(features), -1) for features in found)

    def code(self) -> str:
        """The operations, regions and control flow included: equal for trunks that compute the same."""
        modules = [m for m in self.module.modules() if isinstance(m, fx.GraphModule)]
        return "\n".join(str(module.graph) for module in modules)
