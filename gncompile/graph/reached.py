"""Which nodes a layer or an input reaches, and which layers reach a node."""

from __future__ import annotations

from collections.abc import Callable

from .layers import LayerOp
from .model_graph import ModelGraph
from .nodes import Node
from .zero_slopes import is_flat


def moved(graph: ModelGraph, begins: Callable[[Node], bool]) -> frozenset[str]:
    """Names of the nodes that move where these begin to: a slope other than zero leads to them."""
    found: set[str] = set()
    for node in graph:
        inputs = (i for i, name in enumerate(node.inputs) if name in found)
        if begins(node) or any(not is_flat(node, i) for i in inputs):
            found.add(node.name)
    return frozenset(found)


class LayersAbove:
    """The trainable layers that each node of a graph depends on, or is."""

    def __init__(self, graph: ModelGraph) -> None:
        self._layers = list(graph.layers)
        self._above: dict[str, frozenset[str]] = {}
        self._last: dict[tuple[str, ...], str] = {}
        for node in graph:
            above: frozenset[str] = frozenset().union(*(self._above[name] for name in node.inputs))
            if isinstance(node.op, LayerOp) and node.op.trainable:
                above |= {node.op.layer}
            self._above[node.name] = above

    def last_of_all(self, names: tuple[str, ...]) -> str:
        """The last layer above all of these nodes; ``""`` if there is none."""
        if names not in self._last:
            common = frozenset.intersection(*(self._above[name] for name in names))
            self._last[names] = next((x for x in reversed(self._layers) if x in common), "")
        return self._last[names]
