"""Softmax at places: ``J = diag(p) (I − 1 pᵀ)``, and of its logarithm ``I − 1 pᵀ``."""

from __future__ import annotations

import sympy

from ..graph.softmax import Softmax
from ..program import operations as ir
from ..program.builder import Value
from .forward import NodeRule, node_rule
from .jacobians import Jacobian
from .rank_one import Places, RankOne

s, x = sympy.symbols("s x", real=True)


@node_rule(Softmax)
class SoftmaxRule(NodeRule[Softmax]):
    """``p``, or ``log p = x − log Σ exp x``."""

    def value(self, inputs: list[Value]) -> Value:
        at_places, name = self.places.of(self.forward.rows_of(inputs[0])), f"a_{self.node.name}"
        if not self.op.log:
            return self.places.flat(self.builder.emit(ir.Softmax(), at_places, name=name))
        # the second time takes away the rounding of the sum, which is not small beside log p for large x
        once = self._shifted(at_places, f"{name}_raw")
        return self.places.flat(self._shifted(once, name))

    def _shifted(self, value: Value, name: str) -> Value:
        total = self.builder.emit(ir.LogSumExp(), value)
        return self.builder.pointwise(x - s, {x: value, s: total}, name=name)

    def jacobian(self, position: int) -> Jacobian:
        result = self.places.of(self.forward.values[self.node.name])
        if not self.op.log:
            return RankOne(self.builder, self.places, result, 1.0, result)
        name = f"p_{self.node.name}{self.forward.suffix}"
        p = self.builder.pointwise(sympy.exp(x), {x: result}, name=name)
        return RankOne(self.builder, self.places, 1.0, 1.0, p)

    @property
    def places(self) -> Places:
        """Where it is taken."""
        return Places(self.builder, self.op.places)
