"""What convolutions do in a forward pass, as uses of their layers, and their Jacobian.

Values, vectors and gradients are convolutions again; only the input factor needs the patches themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..graph.convolution import Convolution, ConvolutionTransposed
from ..graph.layers import Layer
from ..graph.windows import Geometry
from ..program import convolutions as grids
from ..program import operations as ir
from ..program.builder import Value
from ..program.specs import Structure
from .forward import Kind, node_rule
from .jacobians import Fixed, Jacobian
from .layer_rules import LayerRule


@dataclass(frozen=True)
class Convolved(Fixed):
    """``y = W ⋆ x``, or where ``transposed`` its adjoint."""

    geometry: Geometry
    weight: Value
    transposed: bool = False

    def push(self, r: Value, name: str) -> Value:
        return self._through(r, name, back=self.transposed)

    def pull(self, g: Value, name: str) -> Value:
        return self._through(g, name, back=not self.transposed)

    def _through(self, value: Value, name: str, back: bool) -> Value:
        op = grids.ConvolveAdjoint(self.geometry) if back else grids.Convolve(self.geometry)
        return self.builder.emit(op, value, self.weight, name=name)


class ConvolvedRule(LayerRule[Kind]):
    """What both ways share: ``op`` has a ``geometry`` of G groups and T places."""

    @property
    def geometry(self) -> Geometry:
        """What the convolution, or the one it is the adjoint of, looks like."""
        assert isinstance(self.op, Convolution | ConvolutionTransposed)
        return self.op.geometry

    def jacobian(self, position: int) -> Jacobian:
        return Convolved(self.builder, self.geometry, self.weight, self._op.reversed)

    def tangent(
        self, incoming: list[Value | None], direction: Mapping[str, Value], name: str
    ) -> Value | None:
        """``W ⋆ r + V ⋆ x + v`` with ``[V, v] = ΔW̄``; either half may be absent."""
        (r,), (v, bias) = incoming, self.delta(direction)
        terms = [] if r is None else [self.jacobian(0).push(self.forward.rows_of(r), name)]
        if v is not None:
            x = self.forward.rows_of(self.forward.values[self.node.inputs[0]])
            terms.append(self.applied(x, v, bias, name))
        return self.builder.add(*terms, name=name) if terms else None

    def applied(self, x: Value, weight: Value, bias: Value | None, name: str) -> Value:
        """The node's value with these parameters."""
        raise NotImplementedError

    def patches(self, grid: Value) -> Value:
        """``[.., N, G·T, columns]``, rows of what the weight meets or gives."""
        name = f"patches_{self.node.name}{self.forward.suffix}"
        patches = self.builder.emit(grids.Patches(self.geometry), grid, name=name)
        return self.builder.emit(grids.FeaturesLast(), patches, name=f"{name}_rows")

    def channels(self, places: Value) -> Value:
        """``[.., N, T, outputs]``."""
        sizes = self.geometry.outputs, self.geometry.places
        whole = self.builder.emit(ir.Unflatten(sizes), places, name=f"{places.name}_channels")
        return self.builder.emit(ir.Transpose(), whole, name=f"{places.name}_places")

    def apart(self, grid: Value) -> Value:
        """Channels at the places of every group, 0 but for the group's own: ``[.., N, G T, outputs]``."""
        geometry, each = self.geometry, self.geometry.outputs // self.geometry.groups
        index = tuple(
            channel * geometry.places + place if channel // each == group else -1
            for group in range(geometry.groups)
            for place in range(geometry.places)
            for channel in range(geometry.outputs)
        )
        wide = self.builder.emit(ir.Gather(index), grid, name=f"{grid.name}_groups")
        sizes = geometry.groups * geometry.places, geometry.outputs
        return self.builder.emit(ir.Unflatten(sizes), wide, name=f"{grid.name}_places")

    def by_group(self, m: Value, name: str, into: Value | None = None) -> Value:
        """A factor of channels between those of a group; others see none of each other's patches."""
        if self.geometry.groups == 1 or not m.is_full:
            return m
        op = grids.BlockDiagonal(self.geometry.groups)
        return self.builder.emit(op, m, name=f"{name}_groups", into=into)


@node_rule(Convolution)
class ConvolutionRule(ConvolvedRule[Convolution]):
    """``h = W ⋆ x + b``."""

    def value(self, inputs: list[Value]) -> Value:
        x, name = self.forward.rows_of(inputs[0]), f"h_{self.node.name}"
        return self.applied(x, self.weight, self.bias, name)

    def applied(self, x: Value, weight: Value, bias: Value | None, name: str) -> Value:
        operands = [x, weight, *([bias] if bias else [])]
        comment = f"pre-activation of {self.op.layer}"
        return self.builder.emit(
            grids.Convolve(self.geometry), *operands, name=name, comment=comment
        )

    def left(self, g: Value) -> Value:
        return self.channels(g)

    def right(self, x: Value) -> Value:
        return self.patches(x)

    def gradient(self, g: Value, x: Value | None, layer: Layer, name: str) -> Value:
        """``(1/N) Σ g ⋆ x``."""
        assert x is not None
        op = grids.ConvolveGradient(self.geometry, layer.homogeneous, self.coordinate(layer))
        x, comment = self.forward.rows_of(x), f"gradient of {layer.name}"
        return self.builder.emit(op, g, x, name=name, comment=comment)

    def sides(self, columns: Value, x: Value) -> tuple[Value, Value]:
        left, right = super().sides(columns, x)
        return (self.apart(columns) if self.geometry.groups > 1 else left), right

    def column_moment(self, columns: Value, layer: Layer, name: str) -> Value:
        return self.by_group(super().column_moment(columns, layer, name), name)

    def block(self, m: Value, name: str) -> Value:
        """``Σ_t M[t, t]``, between the channels of a group."""
        places = ir.PlaceBlocks(self.geometry.places, last=True)
        return self.by_group(self.builder.emit(places, m, name=name), name)


@node_rule(ConvolutionTransposed)
class ConvolutionTransposedRule(ConvolvedRule[ConvolutionTransposed]):
    """``y = W ∗ x``: x meets the rows of W, and the vectors its columns."""

    def value(self, inputs: list[Value]) -> Value:
        x, name = self.forward.rows_of(inputs[0]), f"h_{self.node.name}"
        return self.applied(x, self.weight, None, name)

    def applied(self, x: Value, weight: Value, bias: Value | None, name: str) -> Value:
        comment = f"pre-activation of {self.op.layer}"
        op = grids.ConvolveAdjoint(self.geometry)
        return self.builder.emit(op, x, weight, name=name, comment=comment)

    def left(self, g: Value) -> Value:
        return self.patches(g)

    def right(self, x: Value) -> Value:
        return self.channels(x)

    def gradient(self, g: Value, x: Value | None, layer: Layer, name: str) -> Value:
        """``(1/N) Σ x ⋆ g``, as the weight lies in memory or flipped as its layer is."""
        assert x is not None
        op = grids.ConvolveGradient(self.geometry, False)
        x, comment = self.forward.rows_of(x), f"gradient of {layer.name}"
        whole = self.builder.emit(op, x, g, name=name, comment=comment)
        return self.builder.transpose(whole) if layer.flipped else whole

    def sides(self, columns: Value, x: Value) -> tuple[Value, Value]:
        left, right = super().sides(columns, x)
        grid = self.forward.rows_of(x)
        return left, (self.apart(grid) if self.geometry.groups > 1 else right)

    def input_moment(
        self, x: Value | None, layer: Layer, name: str, into: Value | None = None
    ) -> Value:
        moment = super().input_moment(x, layer, name, into if self.geometry.groups == 1 else None)
        return self.by_group(moment, name, into)

    def block(self, m: Value, name: str) -> Value:
        """The blocks at all places, whose patches overlap, one after the other."""
        index = ir.Gather(self.geometry.patches)
        rows = self.builder.emit(index, self.builder.dense(m))
        both = self.builder.emit(index, self.builder.emit(ir.Transpose(), rows))
        places = self.builder.as_matrix(both, Structure.SYMMETRIC, both.width)
        return self.builder.emit(ir.PlaceBlocks(self.places), places, name=name)
