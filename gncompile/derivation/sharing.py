"""One pair of Kronecker factors of a weight that is used at many places: how they share it.

At place s of S the weight meets ``x̄_s = [x_s, c_s]`` and yields the pre-activation h_s. With ``M[s, t]`` the
block of curvature between h_s and h_t, ``X[s, t] = E[x̄_s x̄_tᵀ]``, that of W̄ is ``Σ_st M[s, t] ⊗ X[s, t]``:

===========  =============================  =============================  ===================================
mode         Q                              Ḡ                              exact for
===========  =============================  =============================  ===================================
``expand``   ``Σ_s X[s, s]``                ``(1/S) Σ_s M[s, s]``          places that the loss sees apart
``reduce``   ``(1/S²) Σ_st X[s, t]``        ``Σ_st M[s, t]``               places summed before the loss
``nearest``  ``∝ Σ_st X[s, t]⟨M[s, t], Ḡ⟩``  ``∝ Σ_st M[s, t]⟨X[s, t], Q⟩``  a sum that is one product
===========  =============================  =============================  ===================================

*expand* and *reduce* are those of Eschenhagen et al., Kronecker-Factored Approximate Curvature for Modern
Neural Network Architectures, 2023; *nearest* is the product nearest to the sum in the Frobenius norm. See
docs/mathematics.md#places-that-share-factors.

A mode makes a *moment* of the inputs, and one of the outputs by columns or by blocks, in the phases that
measure the batch, and the pair of factors of the two moments afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import sympy

from ..base.options import by_pattern
from ..base.settings import Settings
from ..base.tables import binary_size
from ..errors import CompileError
from ..functions.primitives import select
from ..graph.layers import Layer
from ..graph.model_graph import ModelGraph
from ..graph.nodes import Node
from ..program import operations as ir
from ..program.builder import ProgramBuilder, Value
from ..program.specs import Structure
from .forward import Forward
from .jacobians import Picked
from .layer_rules import LayerRule
from .propagation import total, uses

ITERATIONS = 4
"""Power iterations of ``nearest``."""
ITEMSIZE = 4
"""Bytes of a number, where memory is counted before anything is allocated."""

Use = LayerRule[Any]
Blocks = Mapping[tuple[str, str], Value]
"""Blocks between the uses of a layer, each pair once."""
Factors = tuple[Value, Value]
"""Q and Ḡ, or the moments that they are made of."""

a, b, c, d, k = sympy.symbols("a b c d k", real=True)


class Sharing:
    """A mode, for one side of a layer at a time: the layer, or its mirror."""

    name: ClassVar[str]
    across: ClassVar[bool] = False
    """Whether blocks between different uses are wanted."""
    paired: ClassVar[bool] = False
    """Whether the moments are not yet the factors."""

    def input_moment(self, forward: Forward, layer: Layer, into: Value | None = None) -> Value:
        """The moment of the inputs at all uses; ``into``: the value of an earlier phase to overwrite."""
        raise NotImplementedError

    def rows(self, forward: Forward, layer: Layer, columns: Mapping[str, Value]) -> list[Value]:
        """The rows whose second moments add up to that of the outputs, times :meth:`over`."""
        raise NotImplementedError

    def column_moment(self, forward: Forward, layer: Layer, columns: Mapping[str, Value]) -> Value:
        """The moment of the outputs from columns at the uses."""
        raise NotImplementedError

    def block(self, use: Use, other: Use, m: Value) -> Value:
        """What is needed of the block between two uses, as soon as it is known."""
        raise NotImplementedError

    def block_moment(self, forward: Forward, layer: Layer, blocks: Blocks) -> Value:
        """The moment of the outputs from what is needed of the blocks."""
        return self._mean(forward, layer, list(blocks.values()))

    def over(self, layer: Layer) -> int:
        """What a sum over the places is divided by."""
        return 1

    def width(self, layer: Layer) -> int:
        """The size of the moment of the outputs."""
        return layer.rows

    def pair(self, builder: ProgramBuilder, layer: Layer, moments: Factors) -> Factors:
        """Q and Ḡ, from the moments of inputs and outputs."""
        return moments

    def _mean(self, forward: Forward, layer: Layer, parts: list[Value]) -> Value:
        name, over = f"G_{layer.node.name}", self.over(layer)
        with forward.work_for(layer.node.name):
            summed = forward.builder.add_blocks(parts, name)
            return summed if over == 1 else forward.builder.scaled(summed, 1 / over, f"{name}_mean")


class Expand(Sharing):
    """Places are as samples: ``Q = Σ_s X[s, s]``, ``Ḡ = (1/S) Σ_s M[s, s]``."""

    name = "expand"

    def input_moment(self, forward: Forward, layer: Layer, into: Value | None = None) -> Value:
        parts, only = [], into if len(layer.straight) == 1 else None
        for node, rule in uses(forward, layer.straight):
            with forward.work_for(node.name):
                x = forward.values[node.inputs[0]] if node.inputs else None
                parts.append(rule.input_moment(x, layer, f"Q_{node.name}", only))
        return total(forward, layer, parts, f"Q_{layer.node.name}", None if only else into)

    def rows(self, forward: Forward, layer: Layer, columns: Mapping[str, Value]) -> list[Value]:
        return [columns[node.name] for node in layer.straight if node.name in columns]

    def column_moment(self, forward: Forward, layer: Layer, columns: Mapping[str, Value]) -> Value:
        parts = []
        for node, rule in uses(forward, layer.straight):
            if node.name in columns:
                with forward.work_for(node.name):
                    part = rule.column_moment(columns[node.name], layer, f"G_{node.name}")
                parts.append(part)
        return self._mean(forward, layer, parts)

    def block(self, use: Use, other: Use, m: Value) -> Value:
        return use.block(m, f"G_{use.node.name}_places")

    def over(self, layer: Layer) -> int:
        return layer.places


class Joined(Sharing):
    """The places of a sample make one row, whose second moment is wanted."""

    across = True

    def of_use(self, use: Use, rows: Value) -> Value:
        """What rows ``[.., P, d]``, one a place, give to the row of their sample."""
        raise NotImplementedError

    def joined(
        self, forward: Forward, layer: Layer, found: Mapping[str, Value], name: str
    ) -> Value:
        """The row of a sample, of what the uses give; nothing from those that are missing."""
        raise NotImplementedError

    def rows(self, forward: Forward, layer: Layer, columns: Mapping[str, Value]) -> list[Value]:
        found = {}
        for node, rule in uses(forward, layer.straight):
            if node.name in columns:
                with forward.work_for(node.name):
                    found[node.name] = self.of_use(rule, rule.left(columns[node.name]))
        return [self.joined(forward, layer, found, f"c_{layer.node.name}_joined")]

    def column_moment(self, forward: Forward, layer: Layer, columns: Mapping[str, Value]) -> Value:
        (row,) = self.rows(forward, layer, columns)
        name, comment = f"G_{layer.node.name}", f"output factor of {layer.name}"
        with forward.work_for(layer.node.name):
            return forward.builder.emit(ir.Moment(), row, name=name, comment=comment)

    def block(self, use: Use, other: Use, m: Value) -> Value:
        builder = use.builder
        right = self.of_use(other, other.left(builder.dense(m)))
        left = self.of_use(use, use.left(builder.transpose(right)))
        if use.node is not other.node:
            return builder.transpose(left)
        return _symmetric(builder, left)


class Reduce(Joined):
    """Places are summed: ``Q = E[x̃ x̃ᵀ]`` with x̃ the mean of x̄ over the places, ``Ḡ = Σ_st M[s, t]``."""

    name = "reduce"

    def of_use(self, use: Use, rows: Value) -> Value:
        if use.places == 1:
            return rows
        builder = use.builder
        return builder.emit(ir.Flatten(), builder.emit(ir.RowSum(), builder.transpose(rows)))

    def joined(
        self, forward: Forward, layer: Layer, found: Mapping[str, Value], name: str
    ) -> Value:
        with forward.work_for(layer.node.name):
            return forward.builder.add(*found.values(), name=name)

    def input_moment(self, forward: Forward, layer: Layer, into: Value | None = None) -> Value:
        found, with_bias = {}, 0.0
        for node, rule, x in _inputs(forward, layer):
            found[node.name] = self.of_use(rule, x)
            with_bias += rule.places * rule.coordinate(layer)
        name = layer.node.name
        total = self.joined(forward, layer, found, f"x_{name}_joined")
        with forward.work_for(name):
            mean = forward.builder.scaled(total, 1 / layer.places, f"x_{name}_mean")
            op = ir.Moment(layer.homogeneous, with_bias / layer.places)
            comment = f"second moment of the mean input of {layer.name}"
            return forward.builder.emit(op, mean, name=f"Q_{name}", comment=comment, into=into)

    def block(self, use: Use, other: Use, m: Value) -> Value:
        if use.node is other.node and not m.is_full:
            return use.block(m, f"G_{use.node.name}_places")  # nothing between places
        block = super().block(use, other, m)
        return block if use.node is other.node else use.builder.plus_transpose(block)


class Nearest(Joined):
    """``argmin ‖Σ_st M[s, t] ⊗ X[s, t] − Ḡ ⊗ Q‖_F`` with ``tr Q = 1``, by power iterations.

    The moments are those of all places side by side, ``[S·d, S·d]``. From *expand*'s Q on, each of

        Ḡ ← Σ_st M[s, t] ⟨X[s, t], Q⟩        Q ← Σ_st X[s, t] ⟨M[s, t], Ḡ⟩

    is the best for the other, up to a factor, so the pair is never further than *expand*'s. Both stay
    positive semidefinite, since so is the matrix of the ⟨X[s, t], Q⟩ (Van Loan and Pitsianos, Approximation
    with Kronecker Products, 1993).
    """

    name, paired = "nearest", True

    def of_use(self, use: Use, rows: Value) -> Value:
        return rows if use.places == 1 else use.builder.flatten(rows)

    def joined(
        self, forward: Forward, layer: Layer, found: Mapping[str, Value], name: str
    ) -> Value:
        places = {node.name: rule.places for node, rule in uses(forward, layer.straight)}
        size = next(row.width // places[use] for use, row in found.items())
        index: list[int] = []
        start = 0
        for use, count in places.items():
            stop = start + count * size
            index += range(start, stop) if use in found else [-1] * (stop - start)
            start = stop if use in found else start
        rows = list(found.values())
        if len(places) == 1:
            return rows[0]
        with forward.work_for(layer.node.name):
            return forward.builder.emit(ir.Gather(tuple(index)), *rows, name=name)

    def width(self, layer: Layer) -> int:
        return layer.places * layer.rows

    def input_moment(self, forward: Forward, layer: Layer, into: Value | None = None) -> Value:
        found, builder, name = {}, forward.builder, layer.node.name
        for node, rule, x in _inputs(forward, layer):
            if layer.homogeneous:
                appended = ir.Gather((*range(x.width), -1), rule.coordinate(layer))
                x = builder.emit(appended, x, name=f"x_{node.name}_bar")
            found[node.name] = self.of_use(rule, x)
        row = self.joined(forward, layer, found, f"x_{name}_joined")
        with forward.work_for(name):
            comment = f"input second moments between the places of {layer.name}"
            return builder.emit(ir.Moment(), row, name=f"X_{name}", comment=comment, into=into)

    def block_moment(self, forward: Forward, layer: Layer, blocks: Blocks) -> Value:
        builder, bands = forward.builder, {}
        order = [node.name for node in layer.straight]
        for use in order:
            mirrored = {v: builder.transpose(m) for (v, u), m in blocks.items() if u == use}
            known = mirrored | {v: m for (u, v), m in blocks.items() if u == use}
            band = {v: known[v] for v in order if v in known}
            if band:
                row = self.joined(forward, layer, band, f"M_{use}_joined")
                bands[use] = builder.transpose(row)
        return _symmetric(builder, self.joined(forward, layer, bands, f"M_{layer.node.name}"))

    def pair(self, builder: ProgramBuilder, layer: Layer, moments: Factors) -> Factors:
        sums, dots = ir.PlaceBlocks(layer.places), ir.PlaceDots(layer.places)
        (x, m), called = moments, layer.node.name

        def best(of: Value, other: Value, factor: Value, name: str) -> Value:
            weights = builder.emit(dots, other, factor, name=f"{name}_weights")
            return builder.emit(sums, of, weights, name=name)

        def unit(v: Value, before: Value) -> Value:
            """``v / tr v``, or what was before where there is nothing."""
            trace = builder.emit(ir.Trace(), v, name=f"trace_{v.name}")
            return builder.pointwise(select(k, a / k, b), {k: trace, a: v, b: before})

        q = builder.emit(sums, x, name=f"Q_{called}_expanded")
        q = unit(q, q)
        for _ in range(ITERATIONS):
            g = best(m, x, q, f"G_{called}_on")
            q = unit(best(x, m, unit(g, g), f"Q_{called}_on"), q)
        g = best(m, x, q, f"G_{called}_nearest")
        square = builder.emit(ir.Dot(), q, q, name=f"Q_{called}_square")
        return q, builder.pointwise(select(k, a / k, a), {k: square, a: g}, name=f"G_{called}")


MODES: Mapping[str, Sharing] = {mode.name: mode for mode in (Expand(), Reduce(), Nearest())}


def sharing_of(graph: ModelGraph, settings: Settings) -> dict[str, Sharing]:
    """The mode of every layer; that of a layer with one place, or of a trainable vector, is *expand*.

    Raises :class:`~gncompile.errors.CompileError` for a pattern that matches no layer, and where the moments
    of ``nearest`` are beyond the memory budget.
    """
    given = settings.sharing
    patterns = {"*": given} if isinstance(given, str) else given
    chosen = by_pattern("sharing", patterns, list(graph.layers)) if graph.layers else {}
    found = {}
    for name, layer in graph.layers.items():
        several = not layer.vector and any(side.places > 1 for side in layer.sides)
        found[name] = MODES[chosen.get(name, Expand.name) if several else Expand.name]
        needed = sum(
            ITEMSIZE * side.places**2 * (side.rows**2 + side.shape[1] ** 2) for side in layer.sides
        )
        if found[name].paired and needed > settings.memory_budget:
            raise CompileError(
                f"sharing 'nearest' of layer {name!r} takes {binary_size(needed)} for what is between its "
                f"{layer.places} places, and memory_budget is {binary_size(settings.memory_budget)}",
                where=str(layer.node.origin),
                instead=f'use sharing={{"{name}": "expand"}}, or a greater memory_budget',
            )
    return found


def shared_lines(
    graph: ModelGraph, settings: Settings, layers: Collection[str]
) -> list[tuple[str, str]]:
    """The modes of those ``layers`` that have several places: ``sharing`` and a text for each mode."""
    modes = sharing_of(graph, settings)
    shared = {n: modes[n].name for n in layers if graph.layers[n].places > 1}
    return [
        ("sharing", f"{mode} of {', '.join(n for n in shared if shared[n] == mode)}")
        for mode in dict.fromkeys(shared.values())
    ]


def exchanged(builder: ProgramBuilder, layer: Layer, mirrored: Factors) -> Factors:
    """Q and Ḡ of uses that are transposed: their inputs are on the side of the outputs of W̄, and vice versa.

    Q has zeros for the bias, which these uses do not have.
    """
    g, q = mirrored
    if layer.homogeneous:
        padding = Picked(builder, tuple(range(layer.columns)), layer.columns + 1)
        q = padding.average(q, padding, f"{q.name}_padded")
    return q, g


def united(builder: ProgramBuilder, *pairs: Factors) -> Factors:
    """One pair for a sum of products ``Σ_i Q_i ⊗ Ḡ_i``: its marginals, with ``tr Q = 1``.

    ::

        Q = Σ_i Q_i tr Ḡ_i / Σ_i tr Q_i tr Ḡ_i        Ḡ = Σ_i Ḡ_i tr Q_i

    The product has the trace of the sum, and nothing depends on how a pair is scaled within.
    """
    if len(pairs) == 1:
        return pairs[0]
    (q, g), (q_r, g_r) = pairs
    symbols = {a: q, b: g, c: q_r, d: g_r}
    traces = {s: builder.emit(ir.Trace(), f, name=f"trace_{f.name}") for s, f in symbols.items()}
    whole = builder.pointwise(a * b + c * d, traces, name="trace_of_both")

    def times(scale: sympy.Symbol, factor: Value) -> Value:
        return builder.pointwise(scale * k, {scale: traces[scale], k: factor})

    summed = builder.add_blocks([times(b, q), times(d, q_r)])
    unit = builder.pointwise(select(k, a / k, a), {k: whole, a: summed}, name=f"{q.name}_both")
    return unit, builder.add_blocks([times(a, g), times(c, g_r)], f"{g.name}_both")


def _inputs(forward: Forward, layer: Layer) -> Iterator[tuple[Node, Use, Value]]:
    """The uses of a layer, each with its inputs as rows, one a place."""
    for node, rule in uses(forward, layer.straight):
        with forward.work_for(node.name):
            yield node, rule, rule.right(forward.rows_of(forward.values[node.inputs[0]]))


def _symmetric(builder: ProgramBuilder, m: Value) -> Value:
    return m if m.is_square else builder.as_matrix(m, Structure.SYMMETRIC, m.width)
