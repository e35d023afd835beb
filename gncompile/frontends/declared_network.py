"""The network of a model file as an ordinary ``nn.Module``, traced like any other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from sympy import Symbol
from torch import Tensor, nn

from ..functions.applied import Elementwise, Function
from .network_schema import Concat, Linear, Node, Pointwise, Select, Slice

INPUT = "input"
ARGUMENT = Symbol("u", real=True)


class DeclaredNetwork(nn.Module):
    """Runs the nodes in order; a node's layer or function is the submodule of the same name.

    What a linear node ``h`` ends with is the submodule ``h_transfer``.

    Weights are Glorot uniform, ``U(-a, a)`` with ``a² = 6 / (in + out)``, drawn in the order of the nodes
    from ``seed``; biases are zero.
    """

    def __init__(
        self,
        input_size: int,
        nodes: Sequence[Node],
        functions: Mapping[str, Function],
        sizes: Mapping[str, int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.nodes = tuple(nodes)
        generator = torch.Generator().manual_seed(seed)
        for node in self.nodes:
            if isinstance(node, Linear):
                layer = nn.utils.skip_init(
                    nn.Linear, sizes[node.inputs[0]], node.size, bias=node.bias, dtype=dtype
                )
                glorot_uniform(layer, generator)
                self.add_module(node.name, layer)
            if node.name in functions and not functions[node.name].is_identity:
                self.add_module(function_name(node), Elementwise(functions[node.name]))

    def forward(self, x: Tensor) -> Tensor:
        values = {INPUT: x}
        for node in self.nodes:
            x = self._run(node, [values[name] for name in node.inputs])
            values[node.name] = x
        return x

    def _run(self, node: Node, inputs: list[Tensor]) -> Tensor:
        match node:
            case Linear():
                return self._transferred(node, self.get_submodule(node.name)(inputs[0]))
            case Pointwise():
                return self._transferred(node, *inputs)
            case Concat():
                return torch.cat(inputs, dim=1)
            case Slice():
                return inputs[0][:, node.start : node.stop]
            case Select():
                return inputs[0][:, list(node.index)]

    def _transferred(self, node: Linear | Pointwise, *inputs: Tensor) -> Tensor:
        function = self._modules.get(function_name(node))
        return inputs[0] if function is None else function(*inputs)

    def extra_repr(self) -> str:
        return f"input_size={self.input_size}, nodes={len(self.nodes)}"


def function_name(node: Node) -> str:
    """The submodule that holds a node's function."""
    return f"{node.name}_transfer" if isinstance(node, Linear) else node.name


def glorot_uniform(layer: nn.Linear, generator: torch.Generator) -> None:
    """Fill a layer as :class:`DeclaredNetwork` says; drawn in float64, so every dtype starts alike."""
    bound = math.sqrt(6 / (layer.in_features + layer.out_features))
    drawn = torch.empty(layer.weight.shape, dtype=torch.float64)
    drawn.uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        layer.weight.copy_(drawn)
        if layer.bias is not None:
            layer.bias.zero_()
