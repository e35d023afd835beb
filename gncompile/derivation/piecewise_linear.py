"""The theorem on piecewise-linear networks: do its conditions hold for this model, and if not, where."""

from __future__ import annotations

from collections.abc import Collection

import sympy

from ..functions.derive import PointwiseRule, pointwise_rule
from ..functions.primitives import select
from ..graph.model_graph import ModelGraph
from ..graph.nodes import Node, Pointwise
from ..losses.vocabulary import Loss, SoftmaxCrossEntropy
from ..program.builder import ProgramBuilder
from .forward import Forward


def theorem(graph: ModelGraph, loss: Loss) -> str:
    """Whether the theorem on piecewise-linear networks holds for this model [BRB §4]; if not, why.

    Conditions: every transfer function is piecewise linear, parameters enter through affine maps only (the
    frontend sees to that), and the loss is twice differentiable in z with a positive semidefinite Hessian.
    """
    active = Forward(ProgramBuilder(), graph, {}).active
    bent = {
        node.name: pairs[0] for node in graph if (pairs := _curved_pairs(graph, node.name, active))
    }
    statement = [
        "If every transfer function is piecewise linear, parameters enter through affine maps only, and the",
        "loss is twice differentiable and convex in z, then wherever all transfer functions are",
        "differentiable the Hessian block of every layer equals its Gauss-Newton block and is positive",
        "semidefinite. So tr H ≥ 0, the objective has no differentiable strict local maximum, and within",
        "one layer, the others fixed, it is convex inside each linear region (not globally).",
    ]
    doubts = _loss_doubts(loss)
    verdict = ["", "Parameters enter through affine maps only: checked when the model was traced."]
    if doubts:
        verdict += [f"The loss: {doubts}"]
    if bent:
        verdict.append("The conditions do not hold, because of what is curved between its kinks:")
        verdict += [f"  {name} = {_curved_text(graph[name], *pair)}" for name, pair in bent.items()]
        verdict += _spared(graph)
    else:
        verdict.append("Every transfer function of this model is piecewise linear.")
        verdict.append(
            "The conditions hold."
            if not doubts
            else "So the network meets them, and what they imply holds where the loss does too."
        )
        verdict += _plateaus(graph, active)
    return "\n".join([*statement, *verdict])


def _curved_pairs(graph: ModelGraph, name: str, moving: Collection[str]) -> list[tuple[int, int]]:
    """Pairs of moving inputs in which a node is curved: ``∂²φ/∂x_i∂x_j`` is not zero."""
    node = graph[name]
    if not isinstance(node.op, Pointwise):
        return []
    seconds = rule_of(node).seconds
    return [
        (i, j)
        for (i, j), second in seconds.items()
        if second != 0 and node.inputs[i] in moving and node.inputs[j] in moving
    ]


def _spared(graph: ModelGraph) -> list[str]:
    """The layers whose own Hessian block meets no curvature, such as one that feeds one side of a product."""
    layers = [
        layer
        for layer, start in graph.layers.items()
        if not any(
            _curved_pairs(graph, node.name, moving)
            for moving in [_downstream(graph, start.name)]
            for node in graph
        )
    ]
    if not layers:
        return []
    return [
        f"For the layers {', '.join(layers)} nothing follows that is curved in them alone, "
        "so H = G there all the same."
    ]


def _plateaus(graph: ModelGraph, active: Collection[str]) -> list[str]:
    """Functions whose slope is zero on whole regions, where the objective may be flat."""
    flat = [node.name for node in graph if node.name in active and _has_flat_part(node)]
    if not flat:
        return []
    return [f"Slopes vanish on whole regions, so plateaus are possible: {', '.join(flat)}."]


def _has_flat_part(node: Node) -> bool:
    slopes = rule_of(node).slopes if isinstance(node.op, Pointwise) else ()
    return any(0 in branch.args[1:] for slope in slopes for branch in slope.atoms(select))


def _loss_doubts(loss: Loss) -> str:
    if isinstance(loss, SoftmaxCrossEntropy):
        return ""
    if loss.convexity.verdict != "convex":
        return f"convexity of {loss.name} is {loss.convexity.verdict} ({loss.convexity.reason})."
    if loss.expression.has(select, sympy.Abs, sympy.sign):
        return f"{loss.name} is written in pieces, and twice differentiable only away from their borders."
    return ""


def _curved_text(node: Node, i: int, j: int) -> str:
    rule, names = rule_of(node), node.inputs
    where = f"∂²/∂{names[i]}²" if i == j else f"∂²/∂{names[i]}∂{names[j]}"
    return f"{rule.value}, {where} = {rule.seconds[i, j]}   ({node.origin})"


def _downstream(graph: ModelGraph, start: str) -> set[str]:
    """The node ``start`` and everything that depends on it."""
    reached = {start}
    for node in graph:
        if reached.intersection(node.inputs):
            reached.add(node.name)
    return reached


def rule_of(node: Node) -> PointwiseRule:
    """The derived rule of a pointwise node."""
    assert isinstance(node.op, Pointwise)
    return pointwise_rule(node.op.expression, node.op.arguments)
