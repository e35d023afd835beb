"""Uses of layers: how a weight meets its input, and what a use gives to gradient and factors.

With ``x̄_s = [x_s, c_s]`` the input and ``g_s`` the vector at place s of a sample, and ``c_s = 1`` where the
bias is used, else 0 (docs/mathematics.md#one-weight-many-uses)::

    ∇W̄ = (1/N) Σ_n Σ_uses Σ_s g_s x̄_sᵀ

A use says which rows those are: :meth:`LayerRule.left` and :meth:`LayerRule.right`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import CompileError
from ..graph.layers import Affine, Layer, LayerOp, Parameter
from ..program import operations as ir
from ..program.builder import Value
from ..program.specs import Structure
from .computed import ComputedForward
from .forward import Kind, LinearRule, node_rule
from .jacobians import Jacobian, Weighted


class LayerRule(LinearRule[Kind]):
    """A node with a weight; ``op`` is a :class:`~gncompile.graph.layers.LayerOp`."""

    @property
    def sizes(self) -> list[int]:
        """Features of the inputs."""
        return [self.forward.graph[name].size for name in self.node.inputs]

    @property
    def places(self) -> int:
        """At how many places of a sample the weight is applied."""
        return self._op.places_in(self.node.size, self.sizes)

    @property
    def _op(self) -> LayerOp:
        assert isinstance(self.op, LayerOp)
        return self.op

    @property
    def weight(self) -> Value:
        """The weight as it lies in memory."""
        shape = self._op.matrix(self.node.size, self.sizes)
        if self._op.computed is None:
            return self.forward.parameter(self._op.weight, shape)
        made = ComputedForward.of(self.forward, self._op.computed)
        return made.matrix(made.output, shape)

    @property
    def bias(self) -> Value | None:
        """The bias ``[rows]`` that this use adds."""
        if self._op.bias is None:
            return None
        rows, columns = self._op.matrix(self.node.size, self.sizes)
        size = columns if self._op.reversed else rows
        return self.forward.parameter(self._op.bias, (size,))

    def delta(self, direction: Mapping[str, Value]) -> tuple[Value | None, Value | None]:
        """The parts of a direction ``ΔW̄`` of the layer: V as the weight lies in memory, and v."""
        if self._op.computed is not None:
            made = ComputedForward.of(self.forward, self._op.computed)
            moved = made.tangent(direction, f"v_{self.node.name}")
            shape = self._op.matrix(self.node.size, self.sizes)
            return None if moved is None else made.matrix(moved, shape), None
        given = direction.get(self._op.layer)
        if given is None:
            return None, None
        layer = self.forward.graph.trained[self._op.layer]
        v, bias = given, None
        if layer.homogeneous:
            v = self.builder.emit(ir.Part("weight"), given, name=f"{given.name}_W")
            if self._op.homogeneous:
                bias = self.builder.emit(ir.Part("bias"), given, name=f"{given.name}_b")
        return (self.builder.transpose(v) if layer.flipped else v), bias

    def left(self, g: Value) -> Value:
        """Vectors at the node as rows ``[.., N, S, out]``, one a place."""
        raise NotImplementedError

    def right(self, x: Value) -> Value:
        """The input as rows ``[N, S, in]``, one a place."""
        raise CompileError(
            f"the inputs of layer {self._op.layer!r} are no rows that its places could share",
            where=str(self.node.origin),
            instead=f'use sharing={{"{self._op.layer}": "expand"}}',
        )

    def gradient(self, g: Value, x: Value | None, layer: Layer, name: str) -> Value:
        """This use's part of ``∇W̄``; a use that is reversed within its layer has its sides exchanged."""
        assert x is not None
        left, right = self.left(g), self.right(self.forward.rows_of(x))
        if self._op.reversed != layer.flipped:
            left, right = right, left
        op = ir.Moment(layer.homogeneous, self.coordinate(layer))
        comment = f"gradient of {layer.name}"
        return self.builder.emit(op, left, right, name=name, comment=comment)

    def sides(self, columns: Value, x: Value) -> tuple[Value, Value]:
        """Columns c and input x at the places, ``[S, N, T, a]`` and ``[N, T, b]``.

        ``Σ_s c_s x_sᵀ`` are the rows of the Jacobian.
        """
        return self.left(columns), self.right(self.forward.rows_of(x))

    def coordinate(self, layer: Layer) -> float:
        """The homogeneous coordinate c: 0 for a use without the layer's bias."""
        return 1.0 if self._op.homogeneous or not layer.homogeneous else 0.0

    def input_moment(
        self, x: Value | None, layer: Layer, name: str, into: Value | None = None
    ) -> Value:
        """``(1/N) Σ_n Σ_s x̄ x̄ᵀ``."""
        assert x is not None
        op = ir.Moment(layer.homogeneous, self.coordinate(layer))
        rows = self.right(self.forward.rows_of(x))
        comment = f"input second moment of {layer.name}"
        return self.builder.emit(op, rows, name=name, comment=comment, into=into)

    def column_moment(self, columns: Value, layer: Layer, name: str) -> Value:
        """``(1/N) Σ_n Σ_s Σ_k c cᵀ``."""
        comment = f"output factor of {layer.name}"
        return self.builder.emit(ir.Moment(), self.left(columns), name=name, comment=comment)

    def block(self, m: Value, name: str) -> Value:
        """``Σ_s M[s, s]`` of a block at the node."""
        if self.places == 1:
            return m
        return self.builder.emit(ir.PlaceBlocks(self.places, self._op.places_last), m, name=name)


@node_rule(Affine)
class AffineRule(LayerRule[Affine]):
    """``y_s = x_s Wᵀ + b``, or ``x_s W``."""

    def value(self, inputs: list[Value]) -> Value:
        x = self._at_places(self.forward.rows_of(inputs[0]))
        name, comment = f"h_{self.node.name}", f"pre-activation of {self.op.layer}"
        bias = [self.bias] if self.bias else []
        operands = [x, self._oriented(self.weight), *bias]
        y = self.builder.emit(ir.Affine(), *operands, name=name, comment=comment)
        return self._flat(y)

    def jacobian(self, position: int) -> Jacobian:
        return Weighted(self.builder, self._oriented(self.weight), self.places)

    def tangent(
        self, incoming: list[Value | None], direction: Mapping[str, Value], name: str
    ) -> Value | None:
        """``r Wᵀ + x Vᵀ + v`` with ``[V, v] = ΔW̄``; either half may be absent."""
        (r,), (v, bias) = incoming, self.delta(direction)
        operands: list[Value] = []
        if r is not None:
            operands += [self._at_places(self.forward.rows_of(r)), self._oriented(self.weight)]
        if v is not None:
            x = self.forward.rows_of(self.forward.values[self.node.inputs[0]])
            operands += [self._at_places(x), self._oriented(v), *([bias] if bias else [])]
        if not operands:
            return None
        return self._flat(self.builder.emit(ir.Affine(), *operands, name=name))

    def left(self, g: Value) -> Value:
        return self._at_places(g)

    def right(self, x: Value) -> Value:
        return self._at_places(x)

    def _at_places(self, value: Value) -> Value:
        return self.builder.unflatten(value, self.places)

    def _flat(self, value: Value) -> Value:
        return value if self.places == 1 else self.builder.emit(ir.Flatten(), value)

    def _oriented(self, weight: Value) -> Value:
        """``[out, in]``."""
        return self.builder.transpose(weight) if self.op.transposed else weight


@node_rule(Parameter)
class ParameterRule(LayerRule[Parameter]):
    """``y = p`` for every sample: a row ``[d]``."""

    def value(self, inputs: list[Value]) -> Value:
        return self._row(self.weight)

    def tangent(
        self, incoming: list[Value | None], direction: Mapping[str, Value], name: str
    ) -> Value | None:
        v, _ = self.delta(direction)
        return None if v is None else self._row(v)

    def _row(self, column: Value) -> Value:
        return self.builder.emit(ir.Flatten(), column, name=f"{column.name}_row")

    def left(self, g: Value) -> Value:
        return g

    def gradient(self, g: Value, x: Value | None, layer: Layer, name: str) -> Value:
        """``E[g]`` as ``[d, 1]``."""
        mean = self.builder.emit(ir.Mean(), self.forward.rows_of(g), name=name)
        return self.builder.emit(ir.Unflatten((self.node.size, 1)), mean, name=f"{name}_column")

    def column_moment(self, columns: Value, layer: Layer, name: str) -> Value:
        """``(1/N) Σ_n Σ_k c cᵀ``, of a wide vector its diagonal."""
        if not layer.diagonal:
            return super().column_moment(columns, layer, name)
        comment = f"diagonal output factor of {layer.name}"
        return self.builder.emit(ir.DiagonalMoment(), columns, name=name, comment=comment)

    def block(self, m: Value, name: str) -> Value:
        """M, of a wide vector its diagonal."""
        if not m.is_full or not self.forward.graph.layers[self.op.layer].diagonal:
            return m
        return self.builder.emit(ir.TakeDiagonal(), m, name=name)

    def input_moment(
        self, x: Value | None, layer: Layer, name: str, into: Value | None = None
    ) -> Value:
        """1: the vector has no second factor."""
        one = self.builder.pointwise(1.0, name=name, into=into)
        return self.builder.as_matrix(one, Structure.SCALED_IDENTITY, 1)
