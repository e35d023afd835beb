"""What pooling does in a forward pass, and its Jacobians.

The maximum of a window is a function of what its k taps see, with the indicators of the winning tap as
slopes: ``J_n = Σ_a diag(1_a) S_a`` where ``S_a`` picks tap a of every window. Averaged over the samples

    E[J_nᵀ M J_n] = Σ_ab S_aᵀ (M ⊙ E[1_a 1_bᵀ]) S_b

exactly: with the taps of all windows side by side, one moment of indicators and two scatters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..graph.pooling import MaxPool, SumPool
from ..graph.windows import Window
from ..program import convolutions as grids
from ..program import lookups, specs
from ..program import operations as ir
from ..program.builder import Value
from .forward import Forward, LinearRule, node_rule
from .jacobians import Fixed, Jacobian


@node_rule(SumPool)
class SumPoolRule(LinearRule[SumPool]):
    """``y_t = Σ_a x_{t,a}``."""

    def value(self, inputs: list[Value]) -> Value:
        return self.jacobian(0).push(inputs[0], f"x_{self.node.name}")

    def jacobian(self, position: int) -> Jacobian:
        return Summed(self.builder, self.op.window)


@node_rule(MaxPool)
class MaxPoolRule(LinearRule[MaxPool]):
    """``y_t = max_a x_{t,a}``, linear between its kinks."""

    def value(self, inputs: list[Value]) -> Value:
        return self.builder.emit(
            grids.MaxPool(self.op.window), *inputs, name=f"a_{self.node.name}",
            comment=self.node.origin.module,
        )  # fmt: skip

    def jacobian(self, position: int) -> Jacobian:
        return Won(
            self.builder,
            self.op.window,
            self.forward.graph[self.node.inputs[0]].size,
            self._winners(self.forward),
        )

    def _winners(self, forward: Forward) -> Value:
        """Found once: a share of the batch sees its part of them."""
        if forward.whole is not None:
            return forward.share_of(self._winners(forward.whole))
        x, y = (forward.values[n] for n in (self.node.inputs[0], self.node.name))
        name = f"winners_{self.node.name}{forward.suffix}"
        return self.builder.emit(grids.Winners(self.op.window), x, y, name=name)


@dataclass(frozen=True)
class Summed(Fixed):
    """``y_t = Σ_a x_{t,a}``."""

    window: Window

    def push(self, r: Value, name: str) -> Value:
        return self.builder.emit(grids.SumPool(self.window), r, name=name)

    def pull(self, g: Value, name: str) -> Value:
        return self.builder.emit(grids.Spread(self.window), g, name=name)


@dataclass(frozen=True)
class Won(Jacobian):
    """``y_t = x_{t,a}`` with the winning tap a of every window of a sample; x has ``size`` features."""

    window: Window
    size: int
    winners: Value

    def push(self, r: Value, name: str) -> Value:
        return self.builder.emit(grids.Pick(self.window), r, self.winners, name=name)

    def pull(self, g: Value, name: str) -> Value:
        return self.builder.emit(grids.Spread(self.window), g, self.winners, name=name)

    def each(self, m: Value, name: str) -> Value:
        """The winners of a sample are those of all its columns."""
        winners = self.builder.emit(ir.Unflatten((1, self.winners.width)), self.winners)
        columns = self.builder.emit(ir.Transpose(), m)
        back = self.builder.emit(grids.Spread(self.window), columns, winners, name=name)
        return self.builder.emit(ir.Transpose(), back)

    def half(self, m: Value, name: str) -> Value:
        shares = self.builder.emit(ir.Mean(), self._indicators())
        columns = self.builder.transpose(self.builder.dense(m))
        taps = self.builder.times(self._by_taps(columns), shares)
        assert isinstance(taps, Value)
        return self.builder.transpose(self._to_points(taps, name))

    def average(self, m: Value, other: Jacobian, name: str) -> Value:
        if other != self:
            self._refuse("average with another Jacobian", "'kfra'")
        build, full = self.builder, specs.Structure.SYMMETRIC
        rows = build.emit(ir.Transpose(), self._by_taps(build.dense(m)))
        taps = self._by_taps(rows)
        taps = build.as_matrix(taps, full, taps.width) if m.is_square else taps
        moment = build.emit(ir.Moment(), self._indicators())
        product = build.emit(ir.Hadamard(), taps, moment)
        half = build.emit(ir.Transpose(), self._to_points(product, f"{name}_half"))
        result = self._to_points(half, name)
        return build.as_matrix(result, full, self.size) if m.is_square else result

    def _indicators(self) -> Value:
        """``1_a`` of all taps side by side: ``[N, T·k]``."""
        rows = self.builder.emit(lookups.OneHot(len(self.window.taps)), self.winners)
        return self.builder.emit(ir.Flatten(), rows)

    def _by_taps(self, m: Value) -> Value:
        """A window's column for each of its taps."""
        index = (t for t in range(m.width) for _ in self.window.taps)
        return self.builder.emit(ir.Gather(tuple(index)), m)

    def _to_points(self, m: Value, name: str) -> Value:
        """The columns of taps added up at the points that they see."""
        grid = math.prod(self.window.size)
        index = (
            s + first if s >= 0 else -1
            for first in range(0, self.size, grid)
            for sources in self.window.sources
            for s in sources
        )
        return self.builder.emit(ir.Scatter(tuple(index), self.size), m, name=name)
