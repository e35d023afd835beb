"""What passes along the nodes of a ModelGraph: tangents forwards, vectors backwards.

Each function here walks the graph once and emits instructions; none knows which curvature method or
optimiser asked, nor what kinds of nodes there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import InternalError
from ..graph.layers import Layer, LayerOp, Parameter
from ..graph.nodes import Node, Select
from ..graph.zero_slopes import no_gradient
from ..program import operations as ir
from ..program.builder import Value
from . import node_rules  # noqa: F401  # declares the rules
from .computed import ComputedForward
from .forward import Forward
from .jacobians import Picked
from .layer_rules import LayerRule


def pull_back(
    forward: Forward,
    seed: Value,
    prefix: str = "g",
    to_inputs: bool = False,
    layers: Collection[str] | None = None,
) -> dict[str, Value]:
    """Pass vectors ``∂·/∂z`` back to every active node: ``g_x = Σ_consumers g_y J``.

    With ``to_inputs`` to what moves with an input instead, with ``layers`` to what moves with one of these.
    ``seed`` is ``[N, K]`` or ``[S, N, K]`` (S columns); the results have the same leading dimensions.
    Contributions add at a fork, which is exact for vectors.
    """
    graph = forward.graph
    active = forward.moved_by_inputs if to_inputs else forward.active
    active = active if layers is None else forward.moved_by(layers)
    apart = _apart(forward, active)
    terms: dict[str, list[Value]] = {graph.output.inputs[0]: [seed]}
    parts: dict[str, list[tuple[Picked, Value]]] = {}
    result: dict[str, Value] = {}
    for node in reversed(list(graph)):
        if node.name in parts:
            with forward.work_for(node.name):
                joined = _joined(forward, parts[node.name], f"{prefix}_{node.name}")
            terms.setdefault(node.name, []).append(joined)
        if node.name not in terms or node.name not in active:
            continue
        g = terms[node.name][0]
        if len(terms[node.name]) > 1:
            with forward.work_for(node.name):
                g = forward.builder.add(*terms[node.name], name=f"{prefix}_{node.name}")
        result[node.name] = g
        for i, source in enumerate(node.inputs):
            if source in active and (jacobian := forward.jacobian(node, i)):
                alone = source in apart and len(node.inputs) == 1
                if alone and isinstance(jacobian, Picked):
                    parts.setdefault(source, []).append((jacobian, g))
                    continue
                with forward.work_for(source):
                    term = jacobian.pull(g, f"{prefix}_{source}")
                terms.setdefault(source, []).append(term)
    return result


def _apart(forward: Forward, active: Collection[str]) -> set[str]:
    """The nodes of which several selections take parts, no feature twice: queries, keys and values, say."""
    taken: dict[str, list[int]] = {}
    for node in forward.graph:
        if isinstance(node.op, Select) and len(node.inputs) == 1 and node.name in active:
            taken.setdefault(node.inputs[0], []).extend(node.op.index)
    selecting = {
        name: [r for r in forward.graph.consumers(name) if isinstance(r.op, Select)]
        for name in taken
    }
    return {
        name
        for name, index in taken.items()
        if len(set(index)) == len(index)
        and -1 not in index
        and len(selecting[name]) > 1
        and all(len(reader.inputs) == 1 for reader in selecting[name])
    }


def _joined(forward: Forward, parts: list[tuple[Picked, Value]], name: str) -> Value:
    """What selections without a common feature pass back, gathered at once."""
    places = [-1] * parts[0][0].size
    for position, feature in enumerate(k for picked, _ in parts for k in picked.index):
        places[feature] = position
    return forward.builder.emit(ir.Gather(tuple(places)), *(g for _, g in parts), name=name)


def weight_gradients(forward: Forward, vectors: Mapping[str, Value]) -> dict[str, Value]:
    """``∇W̄ = (1/N) Σ_uses gᵀ [a, c]`` for every trainable layer, ``∇p`` for what weights are made of."""
    graph = forward.graph
    terms = {name: _terms(forward, vectors, layer) for name, layer in graph.layers.items()}
    for name, layer in graph.first_order.items():
        alone = tuple(n for n in layer.uses if isinstance(n.op, Parameter) and n.op.weight == name)
        terms[name] = _terms(forward, vectors, replace(layer, uses=alone))
    for layer in graph.computed.values():
        found = _terms(forward, vectors, layer)
        if found:
            whole = total(forward, layer, found, f"grad_{layer.node.name}")
            for name, term in _to_parameters(forward, layer, whole).items():
                terms[name].append(term)
    if idle := [name for name in graph.first_order if not terms[name]]:
        raise no_gradient(graph, idle)
    trained = graph.trained
    return {
        name: total(forward, trained[name], parts, f"grad_{trained[name].node.name}")
        for name, parts in terms.items()
        if parts
    }


def layer_gradients(
    forward: Forward, vectors: Mapping[str, Value], layers: Mapping[str, Layer]
) -> dict[str, Value]:
    """``∇W̄`` of these layers alone, whose weights are parameters themselves."""
    return {
        name: total(forward, layer, parts, f"grad_{layer.node.name}")
        for name, layer in layers.items()
        if (parts := _terms(forward, vectors, layer))
    }


def _terms(forward: Forward, vectors: Mapping[str, Value], layer: Layer) -> list[Value]:
    """What each use of a layer gives to its gradient."""
    parts = []
    for node, rule in uses(forward, layer.uses):
        if node.name in vectors:
            with forward.work_for(node.name):
                x = forward.values[node.inputs[0]] if node.inputs else None
                g = vectors[node.name]
                parts.append(rule.gradient(g, x, layer, f"grad_{node.name}"))
    return parts


def _to_parameters(forward: Forward, layer: Layer, gradient: Value) -> dict[str, Value]:
    """``∂/∂p`` as ``[size, 1]`` for the parameters of a computed weight, from ``∂/∂W``."""
    assert isinstance(layer.node.op, LayerOp)
    computed = layer.node.op.computed
    assert computed is not None
    with forward.work_for(layer.node.name):
        made = ComputedForward.of(forward, computed)
        seed = made.sample(gradient)
        vectors = pull_back(made, seed, f"g_{layer.node.name}")
        return {
            name: made.matrix(vectors[node.name], (node.size, 1))
            for name, node in computed.inputs.items()
            if node.name in vectors
        }


def uses(forward: Forward, nodes: Iterable[Node]) -> list[tuple[Node, LayerRule[Any]]]:
    """The uses of a layer with their rules."""
    return [(node, layer_rule(forward, node.name)) for node in nodes]


def layer_rule(forward: Forward, use: str) -> LayerRule[Any]:
    """The rule of a node with a weight."""
    rule = forward.rule(forward.graph[use])
    assert isinstance(rule, LayerRule)
    return rule


def total(
    forward: Forward, layer: Layer, parts: list[Value], name: str, into: Value | None = None
) -> Value:
    """The sum of what the uses of a layer give."""
    if len(parts) == 1 and into is None:
        return parts[0]
    with forward.work_for(layer.node.name):
        return forward.builder.add(*parts, name=name, into=into)


def push_forward(forward: Forward, direction: Mapping[str, Value], prefix: str) -> Value:
    """R-operator: the change ``r_z`` of the output along ``direction`` (``ΔW̄`` by layer).

    See docs/mathematics.md#step-size-and-momentum.
    """
    tangents: dict[str, Value | None] = {}
    for node in forward.graph:
        incoming = [tangents[source] for source in node.inputs]
        if not isinstance(node.op, LayerOp) and all(moved is None for moved in incoming):
            tangents[node.name] = None
            continue
        with forward.work_for(node.name):
            rule, name = forward.rule(node), f"{prefix}_{node.name}"
            tangents[node.name] = rule.tangent(incoming, direction, name)
    moved = tangents[forward.graph.output.name]
    if moved is None:
        raise InternalError("the output does not move along a direction")
    return forward.rows_of(moved)
