"""Streams of a grid read between its points: the chain rule, with nodes of raised order as partials."""

from __future__ import annotations

import sympy
from sympy import Expr

from ..functions.faa_di_bruno import chain
from .fuse_pointwise import symbol_of
from .interpolate import Interpolate
from .nodes import Node
from .stream_walk import Streams, Walk


def interpolate_streams(walk: Walk, node: Node) -> Streams:
    """``∂_t T(u, v) = T_u ∂_t u + T_v ∂_t v``, and so on; each partial of T is a node of the same kind."""
    made: dict[tuple[int, ...], Expr] = {}

    def partial(axes: tuple[int, ...]) -> Expr:
        if axes not in made:
            made[axes] = found(axes)
        return made[axes]

    def found(axes: tuple[int, ...]) -> Expr:
        op: Interpolate | None = node.op  # type: ignore[assignment]
        for axis in axes:
            assert op is not None
            op = op.slope(axis)
            if op is None:  # the derivative of a jump, whose delta is left out
                walk.kinks[node.name] = node
                return sympy.Integer(0)
        assert op is not None
        label = f"{node.name}__d{''.join(map(str, axes))}"
        return symbol_of(walk.add(label, op, node.inputs, node.shape, node))

    inner = [walk.symbols(name) for name in node.inputs]
    streams = {d: chain(d, partial, inner) for d in walk.needed[node.name]}
    return walk.nodes_of(node.name, streams, node)
