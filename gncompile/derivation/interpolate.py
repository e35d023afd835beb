"""Interpolation at places that a network computes: elementwise, with slopes that are interpolants too.

Derivatives of a grid's interpolant are the same sum over its points with derivatives of the kernel, so that
tangents, vectors, averages and second derivatives are those of a pointwise node.
"""

from __future__ import annotations

from ..graph.interpolate import Interpolate
from ..program import interpolation
from ..program import operations as ir
from ..program.builder import Value
from .forward import NodeRule, node_rule
from .jacobians import Jacobian, Scaled


@node_rule(Interpolate)
class InterpolateRule(NodeRule[Interpolate]):
    """``y = T(u, v, …)``."""

    elementwise = True

    def value(self, inputs: list[Value]) -> Value:
        name = self.node.name
        return self._read(self.op, inputs, f"a_{name}", self.node.origin.module)

    def jacobian(self, position: int) -> Jacobian | None:
        slope = self._derivative(position)
        return None if slope is None else Scaled(self.builder, slope)

    def curve(self, g: Value, i: int, j: int) -> Value | None:
        """``diag(g ⊙ ∂²y/∂u_i∂u_j)``."""
        second = self._derivative(min(i, j), max(i, j))
        if second is None:
            return None
        d = self.builder.times(g, second)
        assert isinstance(d, Value)
        return self.builder.emit(ir.SampleDiagonal(), d)

    def _derivative(self, *axes: int) -> Value | None:
        """A derivative at the places of this pass, found once: a share of the batch sees its part of it."""
        forward, op = self.forward, self.op
        if forward.whole is not None:
            whole = type(self)(forward.whole, self.node)._derivative(*axes)
            return None if whole is None else forward.share_of(whole)
        for axis in axes:
            slope = op.slope(axis)
            if slope is None:
                return None
            op = slope
        inputs = [forward.values[name] for name in self.node.inputs]
        name = f"{'_bc'[len(axes)]}_{self.node.name}_{'_'.join(map(str, axes))}"
        return self._read(op, inputs, f"{name}{forward.suffix}", f"slope of {self.node.name}")

    def _read(self, op: Interpolate, places: list[Value], name: str, comment: str) -> Value:
        grid = self.builder.leaf("constant", op.grid, op.shape)
        rows = [self.forward.rows_of(place) for place in places]
        return self.builder.emit(
            interpolation.Interpolate(op.of), grid, *rows, name=name, comment=comment
        )
