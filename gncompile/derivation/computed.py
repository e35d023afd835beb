"""Weights computed of parameters: their values, directions, and what comes back from their gradients.

The parameters are the one sample of a network (:mod:`gncompile.graph.computed`), so its rules are those of
every other: values are rows ``[1, size]``, tangents go forwards, vectors backwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

from ..graph.computed import Computed
from ..graph.model_graph import ModelGraph
from ..graph.nodes import Input, Node
from ..graph.zero_slopes import is_flat
from ..program import operations as ir
from ..program.builder import Value
from .forward import Forward, has_rows
from .jacobians import Jacobian


class ComputedForward(Forward):
    """The pass from parameters to a weight, within that of a batch, whose work it is."""

    computed: Computed

    @classmethod
    def of(cls, forward: Forward, computed: Computed) -> ComputedForward:
        """At the parameters of ``forward``."""
        graph = ModelGraph(list(computed.nodes))
        own = cls(forward.builder, graph, {}, forward.suffix, 1)
        own.computed = computed
        for name, node in computed.inputs.items():
            own.values[node.name] = own.sample(forward.parameter(name, (node.size, 1)))
        for node in graph:
            if not isinstance(node.op, Input):
                own.values[node.name] = own.rule(node).value([own.values[x] for x in node.inputs])
        return own

    def sample(self, value: Value) -> Value:
        """A matrix as the one sample, ``[1, size]``."""
        return self.builder.emit(
            ir.Unflatten((1, math.prod(map(int, value.spec.shape)))), self._flat(value)
        )

    def matrix(self, value: Value, shape: tuple[int, int]) -> Value:
        """The inverse of :meth:`sample`."""
        return self.builder.emit(ir.Unflatten(shape), self._flat(value))

    def _flat(self, value: Value) -> Value:
        return self.builder.emit(ir.Flatten(), value) if has_rows(value) else value

    def tangent(self, direction: Mapping[str, Value], prefix: str) -> Value | None:
        """The weight's change along ``direction``, by parameter; nothing where that moves none of its own."""
        tangents: dict[str, Value | None] = {}
        for node in self.graph:
            if isinstance(node.op, Input):
                given = direction.get(self.computed.parameters[node.op.position])
                tangents[node.name] = None if given is None else self.sample(given)
            else:
                incoming = [tangents[x] for x in node.inputs]
                tangents[node.name] = self.rule(node).tangent(incoming, {}, f"{prefix}_{node.name}")
        return tangents[self.graph.output.name]

    @cached_property
    def active(self) -> frozenset[str]:
        """The nodes to which a slope other than zero leads."""
        found: set[str] = set()
        for node in self.graph:
            moved = (i for i, name in enumerate(node.inputs) if name in found)
            if isinstance(node.op, Input) or any(not is_flat(node, i) for i in moved):
                found.add(node.name)
        return frozenset(found)

    def jacobian(self, node: Node, position: int) -> Jacobian | None:
        return self.rule(node).jacobian(position)

    def work_for(self, *names: str) -> AbstractContextManager[None]:
        """The work is that of the layer of the weight."""
        return nullcontext()
