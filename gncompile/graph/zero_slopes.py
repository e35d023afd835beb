"""Where the gradient ends: nodes whose slope is zero wherever it is defined, and the layers behind them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..errors import CompileError
from ..functions.derive import differentiate
from ..functions.stable_forms import stable
from .model_graph import ModelGraph
from .nodes import Node, Pointwise, describe

SHOWN = 5


def is_flat(node: Node, position: int) -> bool:
    """Whether ``∂φ/∂x_i`` of a node is identically zero: of ``sign(x)``, of ``x - x``, of a constant.

    So is a constant whose square, which curvatures hold, is zero in floating point: of ``1e-200 x``.
    """
    if not isinstance(node.op, Pointwise):
        return node.op.is_constant(node.size)
    slope = stable(differentiate(stable(node.op.expression), node.op.arguments[position]))
    return bool(slope == 0 or (slope.is_number and float(slope.evalf(30)) ** 2 == 0))


def require_slopes(graph: ModelGraph, traced: ModelGraph | None = None) -> None:
    """Raise :class:`CompileError` for trainable layers from which no slope reaches the output.

    Nothing would ever train them. Layers whose value reaches the output by some path with a slope pass.
    With ``traced``, the graph that this one was composed from, also for its layers that are gone: in one
    expression their slopes have cancelled.
    """
    if traced is not None and (gone := [x for x in traced.trained if x not in graph.trained]):
        raise no_gradient(traced, gone)
    reached = {graph.output.name}
    for node in reversed(list(graph)):
        if node.name in reached:
            reached.update(x for i, x in enumerate(node.inputs) if not is_flat(node, i))
    dead = [
        name
        for name, layer in graph.trained.items()
        if not any(node.name in reached for node in layer.uses)
    ]
    if dead:
        raise no_gradient(graph, dead)


def no_gradient(graph: ModelGraph, layers: Collection[str]) -> CompileError:
    """The error about ``layers`` that get no gradient, with the nodes that cut it."""
    parameters: list[str] = []
    cuts: dict[str, Node] = {}
    for layer in layers:
        parameters += graph.trained[layer].parameters
        for use in graph.trained[layer].uses:
            cuts |= {node.name: node for node in _cuts(graph, use)}
    shown = [f"{describe(node)}, at {node.origin}" for node in cuts.values()]
    rest = len(shown) - SHOWN
    lines = [*shown[:SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
    why = (
        "the slope of what follows is zero wherever it is defined"
        if cuts
        else "their slopes cancel"
    )
    return CompileError(
        f"the trainable parameters {', '.join(parameters)} get no gradient: {why}",
        where="\n              ".join(lines) or f"the layers {', '.join(layers)}",
        instead="freeze them with requires_grad_(False), remove them, or use a function with a slope "
        "(a sigmoid for a step)",
    )


def _cuts(graph: ModelGraph, start: Node) -> Iterator[Node]:
    """The nodes at which slopes from ``start`` end."""
    moving = {start.name}
    for node in graph:
        inputs = [i for i, name in enumerate(node.inputs) if name in moving]
        if any(not is_flat(node, i) for i in inputs):
            moving.add(node.name)
        elif inputs:
            yield node
