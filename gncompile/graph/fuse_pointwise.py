"""Compose chains of pointwise nodes into one expression each."""

from __future__ import annotations

import sympy

from ..base.names import free_name
from .dead_nodes import remove_dead_nodes
from .model_graph import ModelGraph
from .nodes import Node, Pointwise


def fuse_pointwise(graph: ModelGraph) -> ModelGraph:
    """Substitute every pointwise node into its consumer when that is pointwise and its only consumer.

    Slopes are then averaged once a layer, not once an operation (the approximation is better for it).
    Repeated until nothing is left to compose, so that a value whose readers all end in one expression becomes
    a part of it. Identities and dead nodes are removed. A composed node is named after the source line it
    ends in, where that is known.

    before::

        h = affine[fc](x)      a = tanh(h)      y = a + x      output(y)

    after::

        h = affine[fc](x)      line_12 = x + tanh(h)           output(line_12)
    """
    return _named_after_lines(composed(graph), graph)


def composed(graph: ModelGraph) -> ModelGraph:
    """:func:`fuse_pointwise`, each composed node under the name of the one it ends in."""
    graph = _without_identities(remove_dead_nodes(graph))
    fused = _fused_once(graph)
    while len(fused) < len(graph):
        graph, fused = fused, _fused_once(fused)
    return fused


MAX_OPERATIONS = 200
"""Beyond so many operations a node is left on its own: every value read twice doubles the expression.

The recursion composes the slopes of what is left, to the same result.
"""


def _fused_once(graph: ModelGraph) -> ModelGraph:
    """Every node into the one node that reads it, in one walk."""
    fused: dict[str, Node] = {}
    for node in graph:
        inlined = _inlined(graph, node, fused)
        fused[node.name] = _composed(node, {name: fused.pop(name) for name in inlined})
    # What a composed expression no longer depends on may be read by nothing else.
    return remove_dead_nodes(_without_identities(ModelGraph(list(fused.values()))))


def _inlined(graph: ModelGraph, node: Node, fused: dict[str, Node]) -> list[str]:
    """The inputs to substitute into ``node``, the first ones as far as the result stays small."""
    names, operations = [], _operations(node)
    for name in dict.fromkeys(node.inputs):
        if _goes_into(graph, name, node):
            operations += _uses(node, name) * _operations(fused[name])
            if operations <= MAX_OPERATIONS:
                names.append(name)
    return names


def _operations(node: Node) -> int:
    return int(node.op.expression.count_ops()) if isinstance(node.op, Pointwise) else 0


def _uses(node: Node, name: str) -> int:
    """How often the expression of ``node`` has the input ``name``."""
    assert isinstance(node.op, Pointwise)
    symbols = [s for s, n in zip(node.op.arguments, node.inputs, strict=True) if n == name]
    return sum(int(node.op.expression.count(s)) for s in symbols)


def _goes_into(graph: ModelGraph, name: str, consumer: Node) -> bool:
    pointwise = isinstance(graph[name].op, Pointwise) and isinstance(consumer.op, Pointwise)
    return pointwise and [node.name for node in graph.consumers(name)] == [consumer.name]


def _composed(node: Node, inner: dict[str, Node]) -> Node:
    """``node`` with the expressions of ``inner`` in place of the inputs they compute.

    Its symbols are named after what they stand for, each input and constant once.
    """
    if not isinstance(node.op, Pointwise):
        return node
    parts = [named_after_values(part) for part in (*inner.values(), node)]
    *inner_parts, outer = parts
    substitution = {symbol_of(n): p.expression for n, p in zip(inner, inner_parts, strict=True)}
    # simultaneous: an inner expression may read a value of the same name as another one's symbol
    expression = outer.expression.xreplace(substitution)
    inputs = [name for name in node.inputs if name not in inner]
    inputs = list(dict.fromkeys([n for part in inner.values() for n in part.inputs] + inputs))
    used = [name for name in inputs if symbol_of(name) in expression.free_symbols] or inputs[:1]
    constants = dict.fromkeys(pair for part in parts for pair in part.constants)
    op = Pointwise(
        expression,
        tuple(symbol_of(name) for name in used),
        tuple(pair for pair in constants if pair[0] in expression.free_symbols),
    )
    return Node(node.name, op, tuple(used), node.shape, node.origin)


def named_after_values(node: Node) -> Pointwise:
    """The node's operation with its symbols renamed after the values and constants they stand for.

    A value has one symbol everywhere, whichever node reads it; constants get a suffix of their own, which
    no value's name has.
    """
    assert isinstance(node.op, Pointwise)
    renamed = {s: symbol_of(name) for s, name in zip(node.op.arguments, node.inputs, strict=True)}
    constants = tuple((symbol_of(f"{name}.constant"), name) for _, name in node.op.constants)
    renamed |= {old: new for (old, _), (new, _) in zip(node.op.constants, constants, strict=True)}
    expression = node.op.expression.xreplace(renamed)
    return Pointwise(expression, tuple(symbol_of(name) for name in node.inputs), constants)


def _without_identities(graph: ModelGraph) -> ModelGraph:
    """Let the readers of ``y = x`` read ``x``."""
    source: dict[str, str] = {}
    kept: list[Node] = []
    for node in graph:
        inputs = tuple(source.get(name, name) for name in node.inputs)
        if isinstance(node.op, Pointwise) and (node.op.expression,) == node.op.arguments:
            source[node.name] = inputs[0]
        else:
            kept.append(Node(node.name, node.op, inputs, node.shape, node.origin))
    return ModelGraph(kept)


def _named_after_lines(graph: ModelGraph, simple: ModelGraph) -> ModelGraph:
    """Composed nodes, whose operation is not the one of that name in ``simple``, under their new names."""
    names: dict[str, str] = {}
    taken = {node.name for node in graph}
    for node in graph:
        line = node.origin.location.rpartition(":")[2]
        if node.op != simple[node.name].op and isinstance(node.op, Pointwise) and line.isdigit():
            path = "_".join(node.origin.module.split("."))
            names[node.name] = free_name(f"{path}_line_{line}".lstrip("_"), taken)
            taken.add(names[node.name])
    return ModelGraph([_renamed(node, names) for node in graph])


def _renamed(node: Node, names: dict[str, str]) -> Node:
    inputs = tuple(names.get(name, name) for name in node.inputs)
    return Node(names.get(node.name, node.name), node.op, inputs, node.shape, node.origin)


def symbol_of(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)
