"""Remove what the output does not depend on."""

from __future__ import annotations

from .model_graph import ModelGraph
from .nodes import Input


def remove_dead_nodes(graph: ModelGraph) -> ModelGraph:
    """Keep the inputs and every node the output is computed from.

    before::

        x = input 0        a = sin(x)        z = output(x)

    after::

        x = input 0        z = output(x)
    """
    alive = {graph.output.name}
    for node in reversed(list(graph)):
        if node.name in alive:
            alive.update(node.inputs)
    return ModelGraph([n for n in graph if n.name in alive or isinstance(n.op, Input)])
