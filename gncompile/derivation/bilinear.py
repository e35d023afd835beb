"""Products of two activations as matrices: exact for tangents and vectors, and KFRA stops there.

===============  ============  ===========  =============
``Y = A B``      value         tangent      vector
===============  ============  ===========  =============
to A             ``A B``       ``R B``      ``G Bᵀ``
to B             ``A B``       ``A R``      ``Aᵀ G``
===============  ============  ===========  =============
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.bilinear import Bilinear
from ..program import operations as ir
from ..program.builder import Value
from .forward import NodeRule, node_rule
from .jacobians import Jacobian


@dataclass(frozen=True)
class LeftOf(Jacobian):
    """The Jacobian to A, given B."""

    op: Bilinear
    b: Value

    def push(self, r: Value, name: str) -> Value:
        return self._times(r, self.op.left, self.op.transposed, name)

    def pull(self, g: Value, name: str) -> Value:
        return self._times(g, self.op.result, not self.op.transposed, name)

    def _times(self, x: Value, sizes: tuple[int, ...], transpose: bool, name: str) -> Value:
        views = (
            self.builder.emit(ir.Unflatten(s), v) for s, v in ((sizes, x), (self.op.right, self.b))
        )
        product = self.builder.emit(ir.MatMul(transpose_b=transpose), *views, name=name)
        return self.builder.emit(ir.Flatten(len(sizes)), product)


@dataclass(frozen=True)
class RightOf(Jacobian):
    """The Jacobian to B as it is stored, given A."""

    op: Bilinear
    a: Value

    def push(self, r: Value, name: str) -> Value:
        views = self._views((self.op.left, self.a), (self.op.right, r))
        return self._flat(ir.MatMul(transpose_b=self.op.transposed), views, name)

    def pull(self, g: Value, name: str) -> Value:
        views = self._views((self.op.left, self.a), (self.op.result, g))
        return self._flat(
            ir.MatMul(transpose_a=True), views[:: -1 if self.op.transposed else 1], name
        )

    def _views(self, *viewed: tuple[tuple[int, ...], Value]) -> list[Value]:
        return [self.builder.emit(ir.Unflatten(sizes), value) for sizes, value in viewed]

    def _flat(self, product: ir.MatMul, views: list[Value], name: str) -> Value:
        result = self.builder.emit(product, *views, name=name)
        return self.builder.emit(ir.Flatten(len(self.op.left)), result)


@node_rule(Bilinear)
class BilinearRule(NodeRule[Bilinear]):
    """``Y = A B``."""

    def value(self, inputs: list[Value]) -> Value:
        a, b = map(self.forward.rows_of, inputs)
        return LeftOf(self.builder, self.op, b).push(a, f"x_{self.node.name}")

    def jacobian(self, position: int) -> Jacobian:
        other = self.forward.rows_of(self.forward.values[self.node.inputs[1 - position]])
        return (LeftOf, RightOf)[position](self.builder, self.op, other)
