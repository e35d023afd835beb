"""A frozen part of a network that runs as it is, in torch, before the compiled part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class Trunk:
    """``features = module(inputs, tensors)``, without gradients; what nothing trainable reaches.

    ``shapes`` and ``dtypes`` are those of what the network takes, by name; ``tensors`` the model's own frozen
    parameters and buffers, so that the trunk follows whatever is written to them. The features are the inputs
    of the compiled graph, in order.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: tuple[torch.dtype, ...]
    module: fx.GraphModule = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Rows of features ``[N, size]`` of rows of inputs, which the code may write into: it gets copies."""
        rows = zip(inputs, self.shapes.values(), self.dtypes, strict=True)
        given = [x.reshape(len(x), *shape).to(dtype, copy=True) for x, shape, dtype in rows]
        with torch.no_grad():
            found = self.module(*given, *self.tensors)
        return tuple(each.reshape(len(each), -1).to(inputs[0].dtype) for each in found)

    def code(self) -> str:
        """The operations, regions and control flow included: equal for trunks that compute the same."""
        modules = [m for m in self.module.modules() if isinstance(m, fx.GraphModule)]
        return "\n".join(str(module.graph) for module in modules)
