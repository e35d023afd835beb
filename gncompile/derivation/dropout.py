"""Masks of dropout: made in a phase of their own, before all that reads them."""

from __future__ import annotations

import numpy as np
import sympy

from ..graph.dropout import Mask, U
from ..graph.model_graph import ModelGraph
from ..program import operations as ir
from ..program.builder import ProgramBuilder, Value
from .forward import LinearRule, node_rule


@node_rule(Mask)
class MaskRule(LinearRule[Mask]):
    """``m``: one value for every pass, at a step's parameters, at those after it, and at averages."""

    def value(self, inputs: list[Value]) -> Value:
        rows, mask = self.forward.rows, _drawn(self.builder, self.node.name, self.op)
        return mask if rows == "N" else self.builder.emit(ir.Share(rows), mask)


def make_masks(builder: ProgramBuilder, graph: ModelGraph) -> None:
    """Draw the masks of a batch, or in another phase overwrite them by what they are without dropout."""
    masks = {node.name: node.op for node in graph if isinstance(node.op, Mask)}
    for name, op in masks.items():
        mask = _drawn(builder, name, op)
        with builder.phase("no_dropout"), builder.origin(node=name):
            rest = builder.pointwise(sympy.Integer(op.rest))
            builder.emit(ir.Repeat(mask.spec.shape), rest, into=mask, name=f"{mask.name}_rest")


def _drawn(builder: ProgramBuilder, name: str, op: Mask) -> Value:
    """``m = φ(u)``, the same value whenever it is asked for."""
    with builder.phase("dropout"), builder.origin(node=name):
        draw = ir.Random("uniform", ("N", op.channels), op.draw)
        u = builder.emit(draw, name=f"u_{op.draw}")
        mask = builder.pointwise(op.expression, {U: u}, name=f"m_{name}")
        if op.positions == 1:
            return mask
        index = np.repeat(np.arange(op.channels), op.positions)
        return builder.emit(ir.Gather(tuple(index.tolist())), mask, name=f"m_{name}_positions")
