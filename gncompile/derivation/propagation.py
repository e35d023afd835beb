"""What passes along the nodes of a ModelGraph: tangents forwards, vectors backwards.

Each function here walks the graph once and emits instructions; none knows which curvature method or
optimiser asked, nor what kinds of nodes there are.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InternalError
from ..graph.model_graph import Affine
from ..program import operations as ir
from ..program.builder import Value
from . import node_rules  # noqa: F401
from .forward import Forward


def pull_back(forward: Forward, seed: Value, prefix: str = "g") -> dict[str, Value]:
    """Pass vectors ``∂·/∂z`` back to every active node: ``g_x = Σ_consumers g_y J``.

    ``seed`` is ``[N, K]`` or ``[S, N, K]`` (S columns); the results have the same leading dimensions.
    Contributions add at a fork, which is exact for vectors.
    """
    graph = forward.graph
    terms: dict[str, list[Value]] = {graph.output.inputs[0]: [seed]}
    result: dict[str, Value] = {}
    for node in reversed(list(graph)):
        if node.name not in terms or node.name not in forward.active:
            continue
        g = terms[node.name][0]
        if len(terms[node.name]) > 1:
            with forward.work_for(node.name):
                g = forward.builder.add(*terms[node.name], name=f"{prefix}_{node.name}")
        result[node.name] = g
        for i, source in enumerate(node.inputs):
            if source in forward.active and (jacobian := forward.jacobian(node, i)):
                with forward.work_for(source):
                    term = jacobian.pull(g, f"{prefix}_{source}")
                terms.setdefault(source, []).append(term)
    return result


def weight_gradients(forward: Forward, vectors: Mapping[str, Value]) -> dict[str, Value]:
    """``∇W̄ = (1/N) gᵀ [a, 1]`` for every trainable layer."""
    gradients = {}
    for layer, node in forward.graph.layers.items():
        if node.name not in vectors:
            continue
        assert isinstance(node.op, Affine)
        with forward.work_for(node.name):
            gradients[layer] = forward.builder.emit(
                ir.Moment(node.op.homogeneous), vectors[node.name], forward.values[node.inputs[0]],
                name=f"grad_{node.name}", comment=f"gradient of {layer}",
            )  # fmt: skip
    return gradients


def push_forward(forward: Forward, direction: Mapping[str, Value], prefix: str) -> Value:
    """R-operator: the change ``r_z`` of the output along ``direction`` (``ΔW̄`` by layer).

    See docs/mathematics.md#step-size-and-momentum.
    """
    tangents: dict[str, Value | None] = {}
    for node in forward.graph:
        incoming = [tangents[source] for source in node.inputs]
        with forward.work_for(node.name):
            rule, name = forward.rule(node), f"{prefix}_{node.name}"
            tangents[node.name] = rule.tangent(incoming, direction, name)
    moved = tangents[forward.graph.output.name]
    if moved is None:
        raise InternalError("the output does not move along a direction")
    return moved
