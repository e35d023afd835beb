"""The graph of a model file's network, read off its nodes: no code of a user's has to be traced for it.

It is the graph that ``torch.export`` leads to, node for node, as ``tests/frontends/test_declared_graph.py``
proves, without what exporting takes: a second to import its machinery, and milliseconds for every layer.
"""

from __future__ import annotations

import numpy as np
import torch
from sympy import Symbol
from torch import Tensor, nn

from ..functions.applied import Elementwise
from ..graph.model_graph import TracedModel
from ..graph.nodes import Origin, Output
from .declared_network import INPUT, DeclaredNetwork, function_name
from .graph_builder import GraphBuilder
from .network_schema import Concat, Linear, Node, Pointwise, Select, Slice
from .values import Activation, Weight


def declared_graph(
    module: nn.Module, examples: tuple[Tensor, ...], name: str
) -> TracedModel | None:
    """The graph of a :class:`DeclaredNetwork` as it was declared; None for any other module.

    One that was changed since is another: by hooks, other submodules, parameters that are frozen or shared.
    """
    if not (type(module) is DeclaredNetwork and _is_as_declared(module, examples)):
        return None
    builder = GraphBuilder(examples[0].dtype)
    values = {INPUT: builder.input("x", 0, (module.input_size,))}
    for node in module.nodes:
        inputs = [values[source] for source in node.inputs]
        values[node.name] = _added(builder, module, node, inputs)
    return builder.finish(values[module.nodes[-1].name], Output(), name)


def _is_as_declared(module: DeclaredNetwork, examples: tuple[Tensor, ...]) -> bool:
    parts = list(module.modules())
    own = (DeclaredNetwork, nn.Linear, Elementwise)
    hooked = any(
        vars(part)[hooks]
        for part in parts
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_buffers")
    )
    parameters = list(module.parameters())
    named = list(module.named_parameters(remove_duplicate=False))
    (x, *more) = examples
    return (
        all(type(part) in own and "forward" not in vars(part) for part in parts)
        and not hooked
        and len(named) == len(parameters)
        and all(p.requires_grad and p.dtype == x.dtype for p in parameters)
        and not more
        and x.shape[1:] == (module.input_size,)
        and not torch.nn.modules.module._has_any_global_hook()
    )


def _added(
    builder: GraphBuilder, module: DeclaredNetwork, node: Node, inputs: list[Activation]
) -> Activation:
    """What a declared node becomes."""
    match node:
        case Linear():
            layer = module.get_submodule(node.name)
            assert isinstance(layer, nn.Linear)
            bias = None if layer.bias is None else Weight(f"{node.name}.bias", layer.bias)
            weight = Weight(f"{node.name}.weight", layer.weight)
            y = builder.affine(inputs[0], weight, bias, (node.size,), Origin(node.name))
            return _transferred(builder, module, node, [y])
        case Pointwise():
            return _transferred(builder, module, node, inputs)
        case Concat():
            return _selected(builder, "cat", inputs, list(range(sum(x.shape[0] for x in inputs))))
        case Slice():
            return _selected(builder, "slice", inputs, list(range(node.start, node.stop)))
        case Select():
            return _selected(builder, "index", inputs, list(node.index))


def _transferred(
    builder: GraphBuilder,
    module: DeclaredNetwork,
    node: Linear | Pointwise,
    inputs: list[Activation],
) -> Activation:
    path = function_name(node)
    applied = module._modules.get(path)
    if not isinstance(applied, Elementwise):
        return inputs[0]
    symbols = [Symbol(x.name, real=True) for x in inputs]
    arguments = dict(zip(symbols, inputs, strict=True))
    expression = applied.function(*symbols)
    shape = inputs[0].shape
    return builder.pointwise(path, expression, arguments.items(), (), shape, Origin(path))


def _selected(
    builder: GraphBuilder, operator: str, inputs: list[Activation], index: list[int]
) -> Activation:
    return builder.select(operator, inputs, np.array(index), (len(index),), Origin())
