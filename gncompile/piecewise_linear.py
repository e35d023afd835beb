"""The theorem on piecewise-linear networks: do its conditions hold for this model, and if not, where."""

from __future__ import annotations

import sympy

from .builder import ProgramBuilder
from .derive import PointwiseRule, pointwise_rule
from .functions import select
from .losses import Loss, SoftmaxCrossEntropy
from .model_graph import ModelGraph, Node, Pointwise
from .propagation import Forward


def theorem(graph: ModelGraph, loss: Loss) -> str:
    """Whether the theorem on piecewise-linear networks holds for this model [BRB §4]; if not, why.

    Conditions: every transfer function is piecewise linear, parameters enter through affine maps only (the
    frontend sees to that), and the loss is twice differentiable in z with a positive semidefinite Hessian.
    """
    active = Forward(ProgramBuilder(), graph, {}).active
    bent = {
        node.name: node
        for node in graph
        if isinstance(node.op, Pointwise)
        and node.name in active
        and not rule_of(node).piecewise_linear
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
    if not bent:
        verdict.append("Every transfer function of this model is piecewise linear.")
        verdict.append(
            "The conditions hold." if not doubts else "So the network meets them, up to the loss."
        )
        return "\n".join([*statement, *verdict])
    verdict.append("The conditions do not hold, because of what is curved between its kinks:")
    verdict += [f"  {name} = {_curved_text(node)}" for name, node in bent.items()]
    kept = [
        layer for layer, node in graph.layers.items() if not _reaches(graph, node.name, set(bent))
    ]
    if kept:
        verdict.append(
            f"For the layers {', '.join(kept)} nothing curved follows, so there H = G all the same."
        )
    return "\n".join([*statement, *verdict])


def _loss_doubts(loss: Loss) -> str:
    if isinstance(loss, SoftmaxCrossEntropy):
        return ""
    if loss.convexity.verdict != "convex":
        return f"convexity of {loss.name} is {loss.convexity.verdict} ({loss.convexity.reason})."
    if loss.expression.has(select, sympy.Abs, sympy.sign):
        return f"{loss.name} is written in pieces, and twice differentiable only away from their borders."
    return ""


def _curved_text(node: Node) -> str:
    assert isinstance(node.op, Pointwise)
    rule = rule_of(node)
    names = dict(zip(range(len(node.inputs)), node.inputs, strict=True))
    i, j = next(pair for pair, second in rule.seconds.items() if second != 0)
    where = f"∂²/∂{names[i]}²" if i == j else f"∂²/∂{names[i]}∂{names[j]}"
    return f"{rule.value}, {where} = {rule.seconds[i, j]}   ({node.origin})"


def _reaches(graph: ModelGraph, start: str, goals: set[str]) -> bool:
    todo, seen = [start], {start}
    while todo:
        for node in graph.consumers(todo.pop()):
            if node.name in goals:
                return True
            if node.name not in seen:
                seen.add(node.name)
                todo.append(node.name)
    return False


def rule_of(node: Node) -> PointwiseRule:
    """The derived rule of a pointwise node."""
    assert isinstance(node.op, Pointwise)
    return pointwise_rule(node.op.expression, node.op.arguments)
