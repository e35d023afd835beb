"""What passes along the nodes of a ModelGraph: values and tangents forwards, vectors backwards.

Each function here walks the graph once and emits instructions; none knows which curvature method or
optimiser asked. Node rules, with ``b_i = ∂φ/∂x_i`` at the pre-activation:

=============  ==================  =======================  ==========================
node           value               tangent (R-operator)     vector passed backwards
=============  ==================  =======================  ==========================
affine         ``x Wᵀ + b``        ``r Wᵀ + x Vᵀ + v``      ``g W``
pointwise      ``φ(x_1, …)``       ``Σ b_i ⊙ r_i``          ``g ⊙ b_i`` to input i
select         ``x[index]``        ``r[index]``             adds back to its source
fixed linear   ``x Aᵀ``            ``r Aᵀ``                 ``g A``
=============  ==================  =======================  ==========================
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import sympy

from ..functions.derive import PointwiseRule, pointwise_rule
from ..graph.model_graph import (
    Affine,
    FixedLinear,
    Input,
    ModelGraph,
    Node,
    Output,
    Pointwise,
    Select,
)
from ..graph.zero_slopes import is_flat
from ..program import step_program as ir
from ..program.builder import Factor, ProgramBuilder, Value


class Forward:
    """The forward pass of one batch: every node's value, and slopes of pointwise nodes on demand."""

    def __init__(
        self,
        builder: ProgramBuilder,
        graph: ModelGraph,
        values: dict[str, Value],
        suffix: str = "",
        rows: ir.Dim = "N",
    ) -> None:
        self.builder = builder
        self.graph = graph
        self.values = values
        self.suffix = suffix
        self.rows = rows

    @classmethod
    def emit(cls, builder: ProgramBuilder, graph: ModelGraph, rows: ir.Dim = "N") -> Forward:
        """Emit the forward pass, of the batch or of a share of it, into the builder's current phase."""
        forward = cls(builder, graph, {}, "" if rows == "N" else f"_{rows}", rows)
        for node in graph:
            forward.values[node.name] = forward._emit(node)
        return forward

    def share(self, rows: ir.Dim) -> Forward:
        """The same pass seen on a share of the batch: views, nothing is computed again."""
        views = {
            name: self.builder.emit(ir.Share(rows), value, name=f"{value.name}_{rows}")
            for name, value in self.values.items()
        }
        return Forward(self.builder, self.graph, views, f"_{rows}")

    @property
    def output(self) -> Value:
        """The network output z."""
        return self.values[self.graph.output.name]

    def weight(self, node: Node) -> Value:
        """The weight ``[out, in]`` of an affine node, or the matrix of a fixed linear one."""
        (source,) = node.inputs
        shape = (node.size, self.graph[source].size)
        if isinstance(node.op, Affine):
            return self.builder.leaf("parameter", node.op.weight, shape)
        assert isinstance(node.op, FixedLinear)
        return self.builder.leaf("constant", node.op.matrix, shape)

    def bias(self, node: Node) -> Value | None:
        """The bias ``[out]`` of an affine node, if it has one."""
        assert isinstance(node.op, Affine)
        if node.op.bias is None:
            return None
        return self.builder.leaf("parameter", node.op.bias, (node.size,))

    def _emit(self, node: Node) -> Value:
        builder, inputs = self.builder, [self.values[name] for name in node.inputs]
        match node.op:
            case Input(position):
                x = builder.leaf("input", str(position), ("N", node.size))
                return x if self.rows == "N" else builder.emit(ir.Share(self.rows), x)
            case Output():
                return inputs[0]
            case Affine():
                bias = self.bias(node)
                operands = [inputs[0], self.weight(node), *([bias] if bias else [])]
                return builder.emit(ir.Affine(), *operands, name=f"h_{node.name}",
                                    comment=f"pre-activation of {node.op.layer}")  # fmt: skip
            case FixedLinear():
                return builder.emit(
                    ir.MatMul(transpose_b=True), inputs[0], self.weight(node), name=f"x_{node.name}"
                )
            case Select(index, fill):
                return builder.emit(ir.Gather(index, fill), *inputs, name=f"x_{node.name}")
            case Pointwise():
                value, symbols = self.rule(node).value, self._symbols(node)
                result = builder.pointwise(value, symbols, name=f"a_{node.name}",
                                           comment=node.origin.module)  # fmt: skip
                return self._in_rows(result, inputs[0], f"a_{node.name}")

    def _symbols(self, node: Node) -> dict:
        op = node.op
        assert isinstance(op, Pointwise)
        symbols = {s: self.values[n] for s, n in zip(op.arguments, node.inputs, strict=True)}
        for symbol, name in op.constants:
            symbols[symbol] = self.builder.leaf("constant", name, (node.size,))
        return symbols

    def rule(self, node: Node) -> PointwiseRule:
        """The derived rule of a pointwise node."""
        assert isinstance(node.op, Pointwise)
        return pointwise_rule(node.op.expression, node.op.arguments)

    def slope(self, node: Node, position: int) -> Factor:
        """``∂φ/∂x_i`` of a pointwise node: a number, or ``[N, d]`` computed from what the rule keeps."""
        rule = self.rule(node)
        return self._factor(
            node, rule.kept_slopes[position], f"b_{node.name}", f"f' of {node.name}"
        )

    def second(self, node: Node, i: int, j: int) -> Factor:
        """``∂²φ/∂x_i∂x_j`` of a pointwise node."""
        expression = self.rule(node).seconds[min(i, j), max(i, j)]
        return self._factor(node, expression, f"c_{node.name}", f"f'' of {node.name}")

    def _factor(self, node: Node, expression: sympy.Expr, name: str, comment: str) -> Factor:
        if expression.is_number:
            return float(expression)
        symbols = {**self._symbols(node), self.rule(node).output: self.values[node.name]}
        name += self.suffix
        value = self.builder.pointwise(expression, symbols, name=name, comment=comment)
        return self._in_rows(value, self.values[node.name], name)

    def _in_rows(self, value: Value, like: Value, name: str) -> Value:
        """``value [N, d]``: what follows from constants alone is one row, or a number, and is repeated."""
        if len(value.spec.shape) == 2:
            return value
        return self.builder.emit(ir.BroadcastRows(), value, like, name=name)

    @cached_property
    def active(self) -> frozenset[str]:
        """Names of nodes that move with a trainable parameter: a slope other than zero leads to them."""
        found: set[str] = set()
        for node in self.graph:
            trainable = isinstance(node.op, Affine) and node.op.trainable
            moved = (i for i, name in enumerate(node.inputs) if name in found)
            if trainable or any(not is_flat(node, i) for i in moved):
                found.add(node.name)
        return frozenset(found)


def select_parts(graph: ModelGraph, node: Node) -> list[tuple[int, ...]]:
    """For each input of a select node: the source position of every output, -1 if from elsewhere."""
    assert isinstance(node.op, Select)
    parts, start = [], 0
    for name in node.inputs:
        size = graph[name].size
        parts.append(tuple(i - start if start <= i < start + size else -1 for i in node.op.index))
        start += size
    return parts


def pull_back(forward: Forward, seed: Value, prefix: str = "g") -> dict[str, Value]:
    """Pass vectors ``∂·/∂z`` back to every active node: ``g_x = Σ_consumers Jᵀ g_y``.

    ``seed`` is ``[N, K]`` or ``[S, N, K]`` (S columns); the results have the same leading dimensions.
    Contributions add at a fork, which is exact for vectors.
    """
    builder, graph = forward.builder, forward.graph
    terms: dict[str, list[Value]] = {graph.output.inputs[0]: [seed]}
    result: dict[str, Value] = {}
    for node in reversed(list(graph)):
        if node.name not in terms or node.name not in forward.active:
            continue
        g = terms[node.name][0]
        if len(terms[node.name]) > 1:
            g = builder.add(*terms[node.name], name=f"{prefix}_{node.name}")
        result[node.name] = g
        for name, value in _pull_back_node(forward, node, g, prefix):
            terms.setdefault(name, []).append(value)
    return result


def _pull_back_node(forward: Forward, node: Node, g: Value, prefix: str) -> list[tuple[str, Value]]:
    builder = forward.builder
    passed: list[tuple[str, Value]] = []
    parts = select_parts(forward.graph, node) if isinstance(node.op, Select) else []
    for i, source in enumerate(node.inputs):
        if source not in forward.active:
            continue
        name = f"{prefix}_{source}"
        if isinstance(node.op, Select):
            scatter = ir.Scatter(parts[i], forward.graph[source].size)
            passed.append((source, builder.emit(scatter, g, name=name)))
        elif isinstance(node.op, Pointwise):
            slope = forward.slope(node, i)
            if slope != 0.0:
                product = builder.times(g, slope, name=name)
                assert isinstance(product, Value)
                passed.append((source, product))
        else:
            passed.append((source, builder.emit(ir.MatMul(), g, forward.weight(node), name=name)))
    return passed


def weight_gradients(forward: Forward, vectors: Mapping[str, Value]) -> dict[str, Value]:
    """``∇W̄ = (1/N) gᵀ [a, 1]`` for every trainable layer."""
    gradients = {}
    for layer, node in forward.graph.layers.items():
        if node.name not in vectors:
            continue
        assert isinstance(node.op, Affine)
        gradients[layer] = forward.builder.emit(
            ir.Moment(node.op.homogeneous), vectors[node.name], forward.values[node.inputs[0]],
            name=f"grad_{node.name}", comment=f"gradient of {layer}",
        )  # fmt: skip
    return gradients


def push_forward(forward: Forward, direction: Mapping[str, Value], prefix: str) -> Value:
    """R-operator: the change ``r_z`` of the output along ``direction`` (``ΔW̄`` by layer) [SPEC §7.4]."""
    tangents: dict[str, Value] = {}
    for node in forward.graph:
        tangent = _push_forward_node(forward, node, tangents, direction, f"{prefix}_{node.name}")
        if tangent is not None:
            tangents[node.name] = tangent
    return tangents[forward.graph.output.name]


def _push_forward_node(
    forward: Forward,
    node: Node,
    tangents: Mapping[str, Value],
    direction: Mapping[str, Value],
    name: str,
) -> Value | None:
    builder = forward.builder
    incoming = [tangents.get(source) for source in node.inputs]
    if isinstance(node.op, Affine):
        return _push_forward_affine(forward, node, incoming[0], direction.get(node.op.layer), name)
    present = [r for r in incoming if r is not None]
    if not present:
        return None
    match node.op:
        case Output():
            return present[0]
        case FixedLinear():
            return builder.emit(
                ir.MatMul(transpose_b=True), present[0], forward.weight(node), name=name
            )
        case Select():
            index = _index_into_present(forward.graph, node, [r is not None for r in incoming])
            return builder.emit(ir.Gather(index), *present, name=name)
    terms = []
    for i, r in enumerate(incoming):
        slope = forward.slope(node, i) if r is not None else 0.0
        if slope != 0.0:
            terms.append(builder.times(slope, r, name=name))  # type: ignore[arg-type]
    if not terms:
        return None
    return terms[0] if len(terms) == 1 else builder.add(*terms, name=name)  # type: ignore


def _push_forward_affine(
    forward: Forward, node: Node, r: Value | None, delta: Value | None, name: str
) -> Value | None:
    """``r Wᵀ + x Vᵀ + v`` with ``[V, v] = ΔW̄``; either half may be absent."""
    builder = forward.builder
    operands = [r, forward.weight(node)] if r is not None else []
    if delta is not None:
        x = forward.values[node.inputs[0]]
        assert isinstance(node.op, Affine)
        if node.op.homogeneous:
            weight = builder.emit(ir.Part("weight"), delta, name=f"{delta.name}_W")
            operands += [x, weight, builder.emit(ir.Part("bias"), delta, name=f"{delta.name}_b")]
        else:
            operands += [x, delta]
    return builder.emit(ir.Affine(), *operands, name=name) if operands else None


def _index_into_present(graph: ModelGraph, node: Node, present: list[bool]) -> tuple[int, ...]:
    """The select's index when inputs without a tangent are left out: their places read 0."""
    index = [-1] * node.size
    start = 0
    for part, here, name in zip(select_parts(graph, node), present, node.inputs, strict=True):
        if here:
            index = [start + i if i >= 0 else old for i, old in zip(part, index, strict=True)]
            start += graph[name].size
    return tuple(index)
