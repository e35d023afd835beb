"""A small copy of a traced model: a few features of every width, fresh random parameters.

Widths cannot be chosen freely: elementwise nodes tie the widths of what they join, and selections and fixed
maps tie single features. So each node keeps a *set of its features*. The sets start small and grow until
they agree: joined nodes keep the same features, and a selected feature's source is kept too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..graph.layers import Affine
from ..graph.model_graph import ModelGraph, TracedModel
from ..graph.nodes import FixedLinear, Input, Node, Output, Pointwise, Select

Kept = dict[str, set[int]]


def shrink(
    traced: TracedModel, generator: torch.Generator, whole_output: bool = False
) -> TracedModel:
    """The same graph with at most about 8 features a node, and normal weights of variance 1/in, in float64.

    Constants keep their values at the features that stay. Where selections need more features than that,
    more are kept; ``whole_output`` keeps every output, for a loss that couples them.
    """
    several = any(len(layer.uses) > 1 for layer in traced.graph.layers.values())
    if several or not all(_can_shrink(node) for node in traced.graph):
        return _redrawn(traced, generator)
    kept = features(traced.graph, whole_output)
    order = {name: sorted(indices) for name, indices in kept.items()}
    parameters: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    nodes = [
        _shrunken(node, traced, order, parameters, constants, generator) for node in traced.graph
    ]
    small = ModelGraph(nodes)  # what a trunk gives is an input of it
    return replace(traced, graph=small, parameters=parameters, constants=constants, trunk=None)


def _can_shrink(node: Node) -> bool:
    """Whether the node's features can be left out one by one: not of a layer at several places."""
    alone = isinstance(node.op, Affine) and node.op.places == 1 and not node.op.transposed
    alone = alone and isinstance(node.op, Affine) and node.op.computed is None
    alone = alone or (isinstance(node.op, FixedLinear) and node.op.copies == 1)
    return alone or isinstance(node.op, Input | Select | Pointwise | Output)


def _redrawn(traced: TracedModel, generator: torch.Generator) -> TracedModel:
    """The same network in float64 with parameters drawn anew."""

    def drawn(tensor: Tensor) -> Tensor:
        scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.5
        return normal(generator, *tensor.shape) * scale

    parameters = {name: drawn(tensor) for name, tensor in traced.parameters.items()}
    constants = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in traced.constants.items()
    }
    return replace(traced, parameters=parameters, constants=constants)


def features(graph: ModelGraph, whole_output: bool = False) -> Kept:
    """The features every node keeps: the smallest sets that agree, above a few of each."""
    kept = {node.name: _first_choice(node, i, graph) for i, node in enumerate(graph)}
    if whole_output:
        kept[graph.output.name] = set(range(graph.output.size))
    changed = True
    while changed:
        before = {name: len(indices) for name, indices in kept.items()}
        for node in graph:
            _agree(node, graph, kept)
        changed = any(len(kept[name]) > size for name, size in before.items())
    return kept


def _first_choice(node: Node, position: int, graph: ModelGraph) -> set[int]:
    """4 to 7 features, not the same number everywhere, so that a transposed matrix shows."""
    count = min(node.size, 4 + position % 4)
    if not isinstance(node.op, Select):
        return set(range(count))
    chosen: set[int] = set()
    start = 0
    for size in [graph[name].size for name in node.inputs]:
        places = [j for j, i in enumerate(node.op.index) if start <= i < start + size]
        chosen.update(places[:count])
        start += size
    filled = [j for j, i in enumerate(node.op.index) if i < 0]
    return chosen | set(filled[:1])


def _agree(node: Node, graph: ModelGraph, kept: Kept) -> None:
    if isinstance(node.op, Pointwise | Output):
        together = kept[node.name].union(*(kept[name] for name in node.inputs))
        for name in (node.name, *node.inputs):
            kept[name] = set(together)
    elif isinstance(node.op, Select):
        for j in kept[node.name]:
            source = _source(node.op.index[j], node, graph)
            if source:
                kept[source[0]].add(source[1])
    elif not isinstance(node.op, Input | Affine | FixedLinear):
        for name in (
            node.name,
            *node.inputs,
        ):  # what mixes features by their places needs all of them
            kept[name] = set(range(graph[name].size))


def _source(index: int, node: Node, graph: ModelGraph) -> tuple[str, int] | None:
    """Which feature of which input stands at ``index`` of the concatenated inputs."""
    if index < 0:
        return None
    for name in node.inputs:
        if index < graph[name].size:
            return name, index
        index -= graph[name].size
    return None


def _shrunken(
    node: Node,
    traced: TracedModel,
    order: Mapping[str, list[int]],
    parameters: dict[str, Tensor],
    constants: dict[str, Tensor],
    generator: torch.Generator,
) -> Node:
    """The node on the features that are kept; its parameters and constants go into the dictionaries."""
    graph, mine = traced.graph, order[node.name]
    op = node.op
    if isinstance(op, Affine):
        inputs = len(order[node.inputs[0]])
        parameters[op.weight] = normal(generator, len(mine), inputs) / math.sqrt(inputs)
        if op.bias is not None:
            parameters[op.bias] = normal(generator, len(mine)) / 2
    elif isinstance(op, FixedLinear):
        name = f"{op.matrix}.{node.name}"
        matrix = traced.constants[op.matrix].double()
        constants[name] = _entries(op, matrix, mine, order[node.inputs[0]])
        op = FixedLinear(name)
    elif isinstance(op, Pointwise):
        for _, name in op.constants:
            constants[f"{name}.{node.name}"] = traced.constants[name].double()[mine]
        renamed = tuple((symbol, f"{name}.{node.name}") for symbol, name in op.constants)
        op = Pointwise(op.expression, op.arguments, renamed)
    elif isinstance(op, Select):
        places = {
            (name, i): k
            for k, (name, i) in enumerate((name, i) for name in node.inputs for i in order[name])
        }
        sources = [_source(op.index[j], node, graph) for j in mine]
        op = Select(tuple(places[s] if s else -1 for s in sources), op.fill)
    return Node(node.name, op, node.inputs, (len(mine),), node.origin)


def _entries(op: FixedLinear, matrix: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Rows and columns of ``I ⊗ A ⊗ I``."""
    (b, i, a), (c, j, d) = (
        torch.unravel_index(torch.tensor(kept), (op.before, size, op.after))
        for kept, size in zip((rows, columns), matrix.shape, strict=True)
    )
    same = (b[:, None] == c) & (a[:, None] == d)
    return matrix[i][:, j] * same


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
