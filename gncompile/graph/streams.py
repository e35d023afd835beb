"""Derivatives of a network's outputs with respect to its inputs, as nodes beside its own: streams.

Every node that moves with the inputs gets one for each of its derivatives that is needed. These are ordinary
nodes, so gradient, R-operator and curvature follow (docs/mathematics.md#streams):

============  ====================================================================================
affine        ``∂h = ∂a Wᵀ``, all derivatives side by side as places of one product
pointwise     ``∂_ij φ(h) = φ'(h) ∂_ij h + φ''(h) ∂_i h ∂_j h``, and so on  (``faa_di_bruno``)
bilinear      ``∂(A B) = ∂A B + A ∂B``, and so on                           (``stream_rules``)
norm          that of the mean, the root and the product that it is made of
softmax       that of ``exp(x − log Σ exp(x))``
maximum pool  that of the largest
others        linear in what moves: the same of every derivative
============  ====================================================================================

A derivative that is zero everywhere has no node.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import CompileError, KinkWarning, warn
from ..functions.faa_di_bruno import Derivative
from .fuse_pointwise import composed, fuse_pointwise
from .model_graph import ModelGraph, TracedModel
from .nodes import Node, Output, Select, describe
from .stream_rules import LINEAR, RULES
from .stream_walk import Walk

__all__ = ["Derivative", "differentiate", "differentiated"]


def differentiate(
    graph: ModelGraph, wanted: Sequence[Derivative], names: Sequence[str] = ()
) -> ModelGraph:
    """The graph whose output is ``[u | wanted_1 u | wanted_2 u | …]``, ``K (1 + len(wanted))`` features.

    ``wanted`` count the features of all inputs of real numbers, one input after the other; ``names`` are what
    the features are called in names of nodes (``u__x__y``), by default after their inputs. Where a derivative
    is zero, so is the output.

    before::

        x = input 0 : [2]     h = affine[fc](x)     u = tanh(h)     z = output(u)

    after, for ``∂/∂x0``::

        h__x0 = affine[fc](x__x0) without bias      u__x0 = (1 - u²) h__x0
        z     = output([u | u__x0])

    Raises :class:`~gncompile.errors.CompileError` for features that there are not, and for nodes that have no
    rule. Warns (:class:`~gncompile.errors.KinkWarning`) of a derivative of a jump, as the second one of a
    ReLU: it is taken as what it is almost everywhere.
    """
    graph = fuse_pointwise(graph)  # a chain of functions is derived as one
    walk = Walk(graph, wanted, names, RULES, (Output, *LINEAR))
    for node in graph:
        if not isinstance(node.op, Output):
            walk.visit(node)
    for node in walk.kinks.values():
        warn(
            KinkWarning,
            f"the node {node.name} = {describe(node)} ({node.origin}) has a kink or a jump: there, the "
            "derivatives that are taken of it hold a delta function, which is left out",
            instead="use a smooth function (softplus, tanh, sine) where second derivatives matter",
        )
    return _side_by_side(walk, graph.output)


def differentiated(
    traced: TracedModel, wanted: Sequence[Derivative], names: Sequence[str] = ()
) -> TracedModel:
    """:func:`differentiate` of a traced model, which keeps its tensors."""
    if traced.trunk is not None:
        raise CompileError(
            "the inputs of the network reach what is compiled through a frozen part that runs as it is",
            where=traced.name,
            instead="use operators that have rules in the frozen part too, so that it can be differentiated",
        )
    return traced.with_graph(differentiate(traced.graph, wanted, names))


def _side_by_side(walk: Walk, output: Node) -> ModelGraph:
    """What the walk has found, with the value and all that is wanted as the output."""
    (u,) = output.inputs
    size, streams = output.size, walk.streams[u]
    inputs = list(dict.fromkeys([u, *(streams[d] for d in walk.wanted if d in streams)]))
    index: list[int] = list(range(size))
    for d in walk.wanted:
        first = inputs.index(streams[d]) * size if d in streams else None
        index += [-1] * size if first is None else range(first, first + size)
    shape = (len(index),)
    joined = walk.add(f"{u}__streams", Select(tuple(index)), inputs, shape, output)
    end = Node(output.name, Output(), (joined,), shape, output.origin)
    graph = composed(ModelGraph([*walk.nodes.values(), end]))
    graph.check()
    return graph
