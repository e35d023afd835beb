"""The graph of a model file's network, read off its nodes: no code of a user's has to be traced for it.

It is the graph that ``torch.export`` leads to, node for node, as ``tests/frontends/test_declared_graph.py``
proves, without what exporting takes: a second to import its machinery, and milliseconds for every layer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

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
from .table_network import TableNetwork
from .values import Activation, Weight


def declared_graph(
    module: nn.Module, examples: tuple[Tensor, ...], name: str
) -> TracedModel | None:
    """The graph of a :class:`DeclaredNetwork` or :class:`TableNetwork`; None for any other module.

    One that was changed since is another: by hooks, other submodules, parameters that are frozen or shared.
    """
    if type(module) not in (DeclaredNetwork, TableNetwork):
        return None
    assert isinstance(module, DeclaredNetwork)
    if not _is_as_declared(module, examples):
        return None
    builder = GraphBuilder(examples[0].dtype)
    table = module if isinstance(module, TableNetwork) else None
    x = _features(builder, table) if table else builder.input("x", 0, (module.input_size,))
    values = {INPUT: x}
    for node in module.nodes:
        inputs = [values[source] for source in node.inputs]
        values[node.name] = _added(builder, module, node, inputs)
    z = values[module.nodes[-1].name]
    if table and table.units:
        z = _with_buffer(builder, table, "mul", operator.mul, z, "output_scale")
        z = _with_buffer(builder, table, "add", operator.add, z, "output_mean")
    return builder.finish(z, Output(), name)


def _is_as_declared(module: DeclaredNetwork, examples: tuple[Tensor, ...]) -> bool:
    parts = dict(module.named_modules())
    hooked = any(
        vars(part)[hooks]
        for part in parts.values()
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    )
    parameters, buffers = list(module.parameters()), dict(module.named_buffers())
    named = list(module.named_parameters(remove_duplicate=False))
    x, *more = examples
    return (
        {path: type(part) for path, part in parts.items()} == _declared_parts(module)
        and not any("forward" in vars(part) for part in parts.values())
        and not hooked
        and len(named) == len(parameters)
        and all(p.requires_grad for p in parameters)
        and all(tensor.dtype == x.dtype for tensor in (*parameters, *buffers.values()))
        and [rows.shape[1:] for rows in examples] == _declared_inputs(module)
        and not any(rows.is_floating_point() for rows in more)
        and (isinstance(module, TableNetwork) or not buffers)
        and not any(b.ndim != 1 or b.isnan().any() for b in buffers.values())
        and not any(t.max_norm or t.scale_grad_by_freq for t in _tables(module).values())
        and not torch.nn.modules.module._has_any_global_hook()
    )


def _declared_parts(module: DeclaredNetwork) -> dict[str, type[nn.Module]]:
    """The kinds of its modules by their paths."""
    functions = {function_name(n) for n in module.nodes if isinstance(n, Linear | Pointwise)}
    parts: dict[str, type[nn.Module]] = {"": type(module)}
    parts |= {node.name: nn.Linear for node in module.nodes if isinstance(node, Linear)}
    parts |= dict.fromkeys(functions & module._modules.keys(), Elementwise)
    if isinstance(module, TableNetwork):
        parts |= {"embeddings": nn.ModuleDict}
        parts |= {f"embeddings.{name}": nn.Embedding for name in module.embeddings}
    return parts


def _declared_inputs(module: DeclaredNetwork) -> list[tuple[int, ...]]:
    """The shapes of a sample's inputs."""
    tables = _tables(module)
    numbers = module.input_size - sum(table.embedding_dim for table in tables.values())
    return [(numbers,), (len(tables),)] if tables else [(numbers,)]


def _tables(module: DeclaredNetwork) -> dict[str, nn.Embedding]:
    """The tables of categories, by their paths."""
    parts = module.named_modules()
    return {path: part for path, part in parts if isinstance(part, nn.Embedding)}


def _features(builder: GraphBuilder, module: TableNetwork) -> Activation:
    """What the nodes read: standardised numbers, and what the tables hold of the categories."""
    shapes = _declared_inputs(module)
    x = builder.input("x", 0, shapes[0])
    categories = [builder.input("categories", 1, shape, whole=True) for shape in shapes[1:]]
    if module.standardises:
        x = _with_buffer(builder, module, "sub", operator.sub, x, "input_mean")
        x = _with_buffer(builder, module, "div", operator.truediv, x, "input_scale")
    if not categories:
        return x
    found = [x]
    for i, (path, table) in enumerate(_tables(module).items()):
        level = builder.select("select", categories, np.array([i]), (), Origin())
        weight, width = Weight(f"{path}.weight", table.weight), (table.embedding_dim,)
        found.append(builder.embedding(level, weight, table.padding_idx, width, Origin(path)))
    return _concatenated(builder, found)


def _with_buffer(
    builder: GraphBuilder,
    module: TableNetwork,
    label: str,
    function: Callable[[Any, Any], Any],
    x: Activation,
    buffer: str,
) -> Activation:
    """``function(x, c)`` with the numbers c of a buffer."""
    name = builder.constant(buffer, module.get_buffer(buffer).expand(x.shape))
    symbol, constant = Symbol(x.name, real=True), Symbol(name, real=True)
    expression = function(symbol, constant)
    constants = [(constant, name)]
    return builder.pointwise(label, expression, [(symbol, x)], constants, x.shape, Origin())


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
            return _concatenated(builder, inputs)
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


def _concatenated(builder: GraphBuilder, inputs: list[Activation]) -> Activation:
    return _selected(builder, "cat", inputs, list(range(sum(x.shape[0] for x in inputs))))
