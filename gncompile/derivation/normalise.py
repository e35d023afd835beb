"""Normalisation at places: value and Jacobian.

With ``w = 1 / √(mean(x²) + eps)`` and ``y = w x`` the Jacobian is ``w (I − y yᵀ/d)``. With
``w = 1 / max(|x|, eps)`` it is ``w (I − y yᵀ)`` where |x| is at least eps, else ``w I``.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..functions.primitives import maximum, number, select
from ..graph.normalise import Centre, Normalise
from ..program import operations as ir
from ..program.builder import Factor, Value
from .forward import LinearRule, NodeRule, node_rule
from .jacobians import Fixed, Jacobian
from .rank_one import Places, RankOne

m, n, x = sympy.symbols("m n x", real=True)


@dataclass(frozen=True)
class Centred(Fixed):
    """``I − 11ᵀ/d`` at every place, its own transpose."""

    places: Places

    def push(self, r: Value, name: str) -> Value:
        return self.places.flat(self.centred(self.places.of(r), name))

    def pull(self, g: Value, name: str) -> Value:
        return self.push(g, name)

    def centred(self, value: Value, name: str) -> Value:
        """``x − mean(x)`` over the last dimension."""
        total = self.builder.emit(ir.RowSum(), value)
        mean = self.builder.scaled(total, 1 / value.width)
        return self.builder.pointwise(x - m, {x: value, m: mean}, name=name)


@node_rule(Centre)
class CentreRule(LinearRule[Centre]):
    """``x − mean(x)``, twice: the second time takes away the rounding of the mean, which may not be small."""

    def value(self, inputs: list[Value]) -> Value:
        jacobian = self.jacobian(0)
        name = f"x_{self.node.name}"
        once = jacobian.centred(jacobian.places.of(self.forward.rows_of(inputs[0])), f"{name}_raw")
        return jacobian.places.flat(jacobian.centred(once, name))

    def jacobian(self, position: int) -> Centred:
        return Centred(self.builder, Places(self.builder, self.op.places))


@node_rule(Normalise)
class NormaliseRule(NodeRule[Normalise]):
    """``y = w x``."""

    def value(self, inputs: list[Value]) -> Value:
        source = self.forward.rows_of(inputs[0])
        values = {x: self.places.of(source), n: self._scale(source)}
        y = self.builder.pointwise(n * x, values, name=f"a_{self.node.name}")
        return self.places.flat(y)

    def jacobian(self, position: int) -> Jacobian:
        source = self.forward.rows_of(self.forward.values[self.node.inputs[0]])
        y = self.places.of(self.forward.values[self.node.name])
        return RankOne(self.builder, self.places, self._scale(source), y, y, self._weight(source))

    @property
    def places(self) -> Places:
        """Where it normalises."""
        return Places(self.builder, self.op.places)

    def _square(self, source: Value) -> Value:
        """``|x|²`` of every place, ``[N, P, 1]``."""
        square = self.builder.pointwise(x**2, {x: self.places.of(source)})
        return self.builder.emit(ir.RowSum(), square)

    def _scale(self, source: Value) -> Value:
        """w of every place, ``[N, P, 1]``."""
        width, eps = self.node.size // self.op.places, number(self.op.eps)
        scale = (
            1 / maximum(sympy.sqrt(n), eps) if self.op.length else 1 / sympy.sqrt(n / width + eps)
        )
        name = f"w_{self.node.name}{self.forward.suffix}"
        return self.builder.pointwise(scale, {n: self._square(source)}, name=name)

    def _weight(self, source: Value) -> Factor:
        """The weight of ``y yᵀ``."""
        if not self.op.length:
            return self.op.places / self.node.size
        longer = select(number(self.op.eps) - sympy.sqrt(n), sympy.Integer(0), sympy.Integer(1))
        return self.builder.pointwise(longer, {n: self._square(source)})
