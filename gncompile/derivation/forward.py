"""The forward pass of one batch, and what each kind of node does in it.

What a node does is said by the :class:`NodeRule` of its kind, with ``b_i = ∂φ/∂x_i``:

=============  ==================  =======================  ==========================
node           value               tangent (R-operator)     vector passed backwards
=============  ==================  =======================  ==========================
affine         ``x Wᵀ + b``        ``r Wᵀ + x Vᵀ + v``      ``g W``                     (``layer_rules``)
parameter      ``p``               ``v``                    —
pointwise      ``φ(x_1, …)``       ``Σ b_i ⊙ r_i``          ``g ⊙ b_i`` to input i
select         ``x[index]``        ``r[index]``             adds back to its source
fixed linear   ``x Aᵀ``            ``r Aᵀ``                 ``g A``
norm, softmax  their formula       ``d ⊙ (r − c (bᵀr) a)``  the same transposed         (``rank_one``)
bilinear       ``A B``             ``R B + A S``            ``G Bᵀ``, ``Aᵀ G``          (``bilinear``)
interpolate    ``T(u, v)``         ``T_u ⊙ r + T_v ⊙ s``    ``g ⊙ T_u``, ``g ⊙ T_v``   (``interpolate``)
=============  ==================  =======================  ==========================

A kind of node is an :class:`~gncompile.graph.nodes.Op` and its rule, declared with :func:`node_rule`,
also from outside the package.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import accumulate
from typing import Any, Generic, TypeVar

import sympy

from ..errors import CompileError
from ..functions.derive import PointwiseRule, pointwise_rule
from ..graph.embedding import is_whole
from ..graph.layers import Layer, LayerOp
from ..graph.model_graph import ModelGraph
from ..graph.nodes import FixedLinear, Input, Node, Op, Output, Pointwise, Select
from ..graph.reached import LayersAbove, moved
from ..program import operations as ir
from ..program import specs
from ..program.builder import Factor, ProgramBuilder, Value
from .jacobians import Jacobian, Picked, Scaled, Weighted, WeightedAlong

Kind = TypeVar("Kind", bound=Op)


class Forward:
    """The forward pass of one batch: every node's value, and what its rule derives from it on demand."""

    def __init__(
        self,
        builder: ProgramBuilder,
        graph: ModelGraph,
        values: dict[str, Value],
        suffix: str = "",
        rows: specs.Dim = "N",
        whole: Forward | None = None,
    ) -> None:
        self.builder = builder
        self.graph = graph
        self.values = values
        self.suffix = suffix
        self.rows = rows
        self.whole = whole

    @classmethod
    def emit(cls, builder: ProgramBuilder, graph: ModelGraph, rows: specs.Dim = "N") -> Forward:
        """Emit the forward pass, of the batch or of a share of it, into the builder's current phase."""
        return cls(builder, graph, {}, "" if rows == "N" else f"_{rows}", rows).filled()

    def filled(self) -> Forward:
        """With every node's value."""
        for node in self.graph:
            with self.work_for(node.name):
                inputs = [self.values[name] for name in node.inputs]
                self.values[node.name] = self.rule(node).value(inputs)
        return self

    def share(self, rows: specs.Dim) -> Forward:
        """The same pass seen on a share of the batch: views, nothing is computed again."""
        forward = Forward(self.builder, self.graph, {}, f"_{rows}", rows, self)
        for name, value in self.values.items():
            with self.work_for(name):
                forward.values[name] = forward.share_of(value)
        return forward

    def share_of(self, value: Value) -> Value:
        """The rows of a value of ``whole`` that this pass sees; what has none is the same for all."""
        if not has_rows(value):
            return value
        return self.builder.emit(ir.Share(self.rows), value, name=f"{value.name}{self.suffix}")

    @property
    def output(self) -> Value:
        """The network output z."""
        return self.values[self.graph.output.name]

    def parameter(self, name: str, shape: tuple[int, ...]) -> Value:
        """A parameter of the network, seen in that shape."""
        return self.builder.leaf("parameter", name, shape)

    def weight(self, layer: Layer) -> Value:
        """The weight of a layer as it lies in memory; ``[columns, rows]`` where that is flipped."""
        shape = layer.rows, layer.columns
        return self.parameter(layer.weight, shape[::-1] if layer.flipped else shape)

    def bias(self, layer: Layer) -> Value | None:
        """The trained bias ``[rows]`` of a layer, if it has one."""
        return None if layer.bias is None else self.parameter(layer.bias, (layer.rows,))

    def rows_of(self, value: Value, size: int | None = None, name: str = "") -> Value:
        """A value ``[N, size]``, a row for every sample: what all share, a row or a number, is repeated."""
        if has_rows(value):
            return value
        shape = self.rows, size or value.width
        return self.builder.emit(ir.Repeat(shape), value, name=name or f"{value.name}_rows")

    def rule(self, node: Node) -> NodeRule:
        """The rule of a node in this pass."""
        rule = _RULES.get(type(node.op))
        if rule is None:
            raise CompileError(
                f"nothing declares how a node of kind {type(node.op).__name__} is derived",
                where=str(node.origin),
                instead="declare its rule with gncompile.derivation.propagation.node_rule",
            )
        return rule(self, node)

    def jacobian(self, node: Node, position: int) -> Jacobian | None:
        """``∂y/∂x_i`` of a node, nothing where it is zero; slopes are work for the layer below."""
        layer = self.layer_of(node.inputs[position])
        with self.builder.origin(node=node.name, layer=layer):
            return self.rule(node).jacobian(position)

    # --- whose work it is -----------------------------------------------------------------------------

    def work_for(self, *names: str) -> AbstractContextManager[None]:
        """What is emitted now belongs to the first of these nodes, and to the last layer above them all.

        Going backwards that is the first layer that needs it: its cost is what it adds to those above.
        """
        return self.builder.origin(node=names[0], layer=self.layer_of(*names))

    def work_at_output(self) -> AbstractContextManager[None]:
        """What is emitted now is what the loss says at the network's output."""
        return self.work_for(self.graph.output.name)

    def layer_of(self, *names: str) -> str:
        """The last trainable layer that all of these nodes depend on, or are; ``""`` if there is none."""
        return self._above.last_of_all(names)

    @cached_property
    def _above(self) -> LayersAbove:
        return LayersAbove(self.graph)

    @cached_property
    def active(self) -> frozenset[str]:
        """Names of nodes that move with a trainable parameter."""
        return self.moved_by({**self.graph.trained, **self.graph.computed})

    def moved_by(self, layers: Collection[str]) -> frozenset[str]:
        """Names of nodes that move with one of these layers: a slope other than zero leads to them."""

        def uses(node: Node) -> bool:
            return isinstance(node.op, LayerOp) and node.op.trainable and node.op.layer in layers

        return moved(self.graph, uses)

    @property
    def moved_by_inputs(self) -> frozenset[str]:
        """Names of nodes that move with an input of real numbers."""
        return moved(self.graph, lambda node: isinstance(node.op, Input) and not is_whole(node.op))


def has_rows(value: Value) -> bool:
    """Whether a node's value has a row for every sample; else it is one row, or a number, for all."""
    return len(value.spec.shape) > 1


# --- what a node does ---------------------------------------------------------------------------------


class NodeRule(Generic[Kind]):
    """What one node does in a forward pass; a subclass for each kind of node."""

    elementwise = False
    """Whether every Jacobian is :class:`Scaled`; connected nodes of this kind are averaged as one."""

    def __init__(self, forward: Forward, node: Node) -> None:
        self.forward = forward
        self.builder = forward.builder
        self.node = node
        self.op: Kind = node.op  # type: ignore[assignment]

    def value(self, inputs: list[Value]) -> Value:
        """``y(x_1, …)``: ``[N, size]``."""
        raise NotImplementedError

    def jacobian(self, position: int) -> Jacobian | None:
        """``∂y/∂x_i`` of every sample; nothing where it is zero."""
        raise NotImplementedError

    def tangent(
        self, incoming: list[Value | None], direction: Mapping[str, Value], name: str
    ) -> Value | None:
        """``Σ_i r_i J_iᵀ`` over the inputs that move, and what the ``direction`` of a layer adds."""
        as_rows = (lambda r: r) if self.elementwise else self.forward.rows_of
        moving = [(i, as_rows(r)) for i, r in enumerate(incoming) if r is not None]
        terms = [j.push(r, name) for i, r in moving if (j := self.forward.jacobian(self.node, i))]
        if len(terms) < 2:
            return terms[0] if terms else None
        return self.builder.add(*terms, name=name)

    def curve(self, g: Value, i: int, j: int) -> Value | None:
        """``Σ_k g_k ∂²y_k/∂x_i∂x_j`` of every sample, ``[N, d, d]``; nothing where it is zero."""
        raise CompileError(
            f"a node of kind {type(self.op).__name__} declares no second derivatives, "
            "which 'hessian' needs",
            where=str(self.node.origin),
            instead="use another method, or define the rule's curve",
        )


class LinearRule(NodeRule[Kind]):
    """A node that is linear in its inputs."""

    def curve(self, g: Value, i: int, j: int) -> Value | None:
        return None


_RULES: dict[type[Op], type[NodeRule[Any]]] = {}


def node_rule(kind: type[Op]) -> Callable[[type[NodeRule[Any]]], type[NodeRule[Any]]]:
    """Declare the rule of a kind of node, as a decorator of its class; once for each kind."""

    def declare(rule: type[NodeRule[Any]]) -> type[NodeRule[Any]]:
        if kind in _RULES:
            raise CompileError(
                f"nodes of kind {kind.__name__} already have a rule, {_RULES[kind].__qualname__} "
                f"of {_RULES[kind].__module__}",
                instead="declare another kind of node",
            )
        _RULES[kind] = rule
        return rule

    return declare


@node_rule(Input)
class InputRule(LinearRule[Input]):
    """``x``."""

    def value(self, inputs: list[Value]) -> Value:
        rows = self.forward.rows
        x = self.builder.leaf("input", str(self.op.position), ("N", self.node.size))
        return x if rows == "N" else self.builder.emit(ir.Share(rows), x)


@node_rule(Output)
class OutputRule(LinearRule[Output]):
    """``z = x``."""

    def value(self, inputs: list[Value]) -> Value:
        return inputs[0]

    def jacobian(self, position: int) -> Jacobian:
        return Scaled(self.builder, 1.0)

    def tangent(
        self, incoming: list[Value | None], direction: Mapping[str, Value], name: str
    ) -> Value | None:
        return incoming[0]


@node_rule(FixedLinear)
class FixedLinearRule(LinearRule[FixedLinear]):
    """``y_s = x_s Aᵀ``."""

    def value(self, inputs: list[Value]) -> Value:
        return self.jacobian(0).push(self.forward.rows_of(inputs[0]), f"x_{self.node.name}")

    def jacobian(self, position: int) -> Jacobian:
        (source,) = self.node.inputs
        shape = tuple(
            size // self.op.copies for size in (self.node.size, self.forward.graph[source].size)
        )
        weight = self.builder.leaf("constant", self.op.matrix, shape)
        if self.op.copies == 1:
            return Weighted(self.builder, weight)
        return WeightedAlong(self.builder, weight, self.op.before, self.op.after)


@node_rule(Select)
class SelectRule(LinearRule[Select]):
    """``y_j = [x_1|x_2|…]_{index_j}``."""

    def value(self, inputs: list[Value]) -> Value:
        gather = ir.Gather(self.op.index, self.op.fill)
        return self.builder.emit(gather, *self._alike(inputs), name=f"x_{self.node.name}")

    def _alike(self, values: list[Value]) -> list[Value]:
        """Rows that all samples share are repeated where they stand beside others."""
        if any(map(has_rows, values)):
            return [self.forward.rows_of(value) for value in values]
        return values

    def jacobian(self, position: int) -> Jacobian:
        before, size = sum(self._sizes[:position]), self._sizes[position]
        index = tuple(i - before if before <= i < before + size else -1 for i in self.op.index)
        return Picked(self.builder, index, size)

    def tangent(
        self, incoming: list[Value | None], direction: Mapping[str, Value], name: str
    ) -> Value | None:
        """One gather of the inputs that move; the places of the others read 0."""
        present = [r for r in incoming if r is not None]
        moves = [
            r is not None
            for size, r in zip(self._sizes, incoming, strict=True)
            for _ in range(size)
        ]
        place = list(accumulate(moves, initial=0))
        index = tuple(place[i] if i >= 0 and moves[i] else -1 for i in self.op.index)
        if not present:
            return None
        return self.builder.emit(ir.Gather(index), *self._alike(present), name=name)

    @property
    def _sizes(self) -> list[int]:
        return [self.forward.graph[name].size for name in self.node.inputs]


@node_rule(Pointwise)
class ElementwiseRule(NodeRule[Pointwise]):
    """``y = φ(x_1, …)`` with slopes computed from what the derived rule keeps."""

    elementwise = True

    @property
    def derived(self) -> PointwiseRule:
        """The derivatives of φ."""
        return pointwise_rule(self.op.expression, self.op.arguments)

    def value(self, inputs: list[Value]) -> Value:
        name = f"a_{self.node.name}"
        result = self.builder.pointwise(
            self.derived.value, self._symbols(), name=name, comment=self.node.origin.module
        )
        if not any(map(has_rows, inputs)) and result.spec.shape:
            return result  # of parameters alone: a row that all samples share
        return self.forward.rows_of(result, self.node.size, name)

    def jacobian(self, position: int) -> Jacobian | None:
        name = self.node.name
        slope = self._factor(self.derived.kept_slopes[position], f"b_{name}", f"f' of {name}")
        return None if slope == 0.0 else Scaled(self.builder, slope)

    def curve(self, g: Value, i: int, j: int) -> Value | None:
        """``diag(g ⊙ ∂²φ/∂x_i∂x_j)``."""
        name, expression = self.node.name, self.derived.seconds[min(i, j), max(i, j)]
        second = self._factor(expression, f"c_{name}", f"f'' of {name}")
        if second == 0.0:
            return None
        d = self.builder.times(g, second)
        assert isinstance(d, Value)
        return self.builder.emit(ir.SampleDiagonal(), d)

    def _symbols(self) -> dict[sympy.Symbol, Value]:
        """The values behind φ's arguments and constants."""
        values = [self.forward.values[name] for name in self.node.inputs]
        constants = {
            symbol: self.builder.leaf("constant", name, (self.node.size,))
            for symbol, name in self.op.constants
        }
        return dict(zip(self.op.arguments, values, strict=True)) | constants

    def _factor(self, expression: sympy.Expr, name: str, comment: str) -> Factor:
        """A derivative of φ: a number, or ``[N, d]``."""
        if expression.is_number:
            return float(expression)
        result = self.forward.values[self.node.name]
        symbols = {**self._symbols(), self.derived.output: result}
        name += self.forward.suffix
        value = self.builder.pointwise(expression, symbols, name=name, comment=comment)
        return self.forward.rows_of(value, self.node.size, name)
