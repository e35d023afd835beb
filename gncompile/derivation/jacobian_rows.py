"""Rows of the Jacobian ``∂z/∂W̄`` of every sample, of columns that were passed back to the uses of a layer.

With the columns ``c_s`` and the input ``x̄_s = [x_s, 1]`` at place s, the row of one column and sample is
``Σ_uses Σ_s c_s x̄_sᵀ``, as many numbers as W̄ has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..graph.layers import Layer
from ..graph.nodes import Node
from ..program import exact
from ..program import operations as ir
from ..program.builder import Value
from .forward import Forward
from .layer_rules import LayerRule
from .propagation import uses


def layer_rows(forward: Forward, layer: Layer, columns: Mapping[str, Value]) -> Value:
    """The rows of a layer that the columns reach, ``[S, N, a (b + 1)]``, W̄ row by row."""
    builder, parts = forward.builder, []
    for node, rule in uses(forward, layer.uses):
        if node.name not in columns:
            continue
        with forward.work_for(node.name):
            if layer.vector:
                parts.append(columns[node.name])
                continue
            op = exact.Rows(layer.homogeneous, rule.coordinate(layer))
            both = sides(forward, node, rule, layer, columns)
            parts.append(builder.emit(op, *both, name=f"rows_{node.name}"))
    return builder.add(*parts, name="rows")


def single_sides(
    forward: Forward, layer: Layer, columns: Mapping[str, Value]
) -> tuple[Value, Value] | None:
    """c ``[S, N, 1, a]`` and x ``[N, 1, b]`` of a layer whose weight a sample meets once; else nothing."""
    ((node, rule), *more) = uses(forward, layer.uses)
    if more or layer.vector or rule.places > 1 or rule.coordinate(layer) != 1.0:
        return None
    with forward.work_for(node.name):
        return sides(forward, node, rule, layer, columns)


def sides(
    forward: Forward,
    node: Node,
    rule: LayerRule[Any],
    layer: Layer,
    columns: Mapping[str, Value],
) -> tuple[Value, Value]:
    """What stands left and right in a use's part of ``∇W̄``, one of them with columns."""
    left, right = rule.sides(columns[node.name], forward.values[node.inputs[0]])
    left, right = at_places(forward, left, 2), at_places(forward, right, 1)
    return (right, left) if rule.op.reversed != layer.flipped else (left, right)


def at_places(forward: Forward, side: Value, leading: int) -> Value:
    """A side with a dimension for its places, where there is one place too."""
    if len(side.spec.shape) == leading + 2:
        return side
    return forward.builder.emit(ir.Unflatten((1, side.width)), side, name=f"{side.name}_at")
