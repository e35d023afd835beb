"""Which layers of a graph are trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from .layers import LayerOp
from .model_graph import ModelGraph


def only_trained(graph: ModelGraph, layers: Collection[str]) -> ModelGraph:
    """The graph in which no layer but ``layers`` is trained: curvature passes through the others.

    ::

        a = affine[0](x)    b = affine[2](a)        with layers = {"2"}: a's weight is a constant, and
        z = Output(b)                               vectors go back no further than b
    """
    return graph.replace(
        *(
            replace(node, op=replace(node.op, trainable=False))
            for node in graph
            if isinstance(node.op, LayerOp) and node.op.layer not in layers
        )
    )
