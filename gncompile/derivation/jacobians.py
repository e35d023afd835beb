"""Local Jacobians: what a node does to a tangent, to vectors passed backwards, and to blocks of curvature.

One small class for every shape of Jacobian; whoever walks the graph asks nothing else of a node. With
``J = ∂y/∂x`` of one sample, E the mean over the batch, and M a block of curvature at y:

===========  ==================  =====================  =======================
method       formula             weight W               slope b
===========  ==================  =====================  =======================
``push``     ``r Jᵀ``            ``r Wᵀ``               ``b ⊙ r``
``pull``     ``g J``             ``g W``                ``g ⊙ b``
``half``     ``E[J]ᵀ M``         ``Wᵀ M``               ``diag(E[b]) M``
``average``  ``E[Jᵀ M K]``       ``Wᵀ M V``             ``M ⊙ E[b cᵀ]``
``each``     ``J_nᵀ M_n``        ``Wᵀ M_n``             ``diag(b_n) M_n``
===========  ==================  =====================  =======================

``push`` and ``pull`` are enough for gradients, step sizes, and the methods that pass columns back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from ..errors import CompileError
from ..program import operations as ir
from ..program import specs
from ..program.builder import Factor, ProgramBuilder, Value


@dataclass(frozen=True)
class Jacobian:
    """The Jacobian of a node with respect to one of its inputs, of every sample.

    A kind of node brings a subclass, or uses one of those below. What it does not override raises
    :class:`~gncompile.errors.CompileError` when a curvature method asks for it.
    """

    builder: ProgramBuilder = field(repr=False, compare=False)

    def push(self, r: Value, name: str) -> Value:
        """``r Jᵀ`` for a tangent r ``[N, d]`` at the input."""
        raise NotImplementedError

    def pull(self, g: Value, name: str) -> Value:
        """``g J`` for vectors g at the output: ``[N, e]``, or ``[S, N, e]`` for S columns."""
        raise NotImplementedError

    def half(self, m: Value, name: str) -> Value:
        """``E[J]ᵀ M``, for the block of this node with another one."""
        self._refuse("average", "'kfra'")

    def average(self, m: Value, other: Jacobian, name: str) -> Value:
        """``E[Jᵀ M K]`` with K the ``other``; as it stands here, for Jacobians that all samples share."""
        transpose = self.builder.transpose
        result = transpose(other.half(transpose(self.half(m, name)), name))
        if self == other and m.is_square:
            return self.builder.as_matrix(result, specs.Structure.SYMMETRIC, result.width)
        return result

    def each(self, m: Value, name: str) -> Value:
        """``J_nᵀ M_n`` of every sample: ``[N, e, f] → [N, d, f]``."""
        self._refuse("product with a matrix of every sample", "'ggn' and 'hessian'")

    def _refuse(self, what: str, methods: str) -> NoReturn:
        raise CompileError(
            f"the Jacobian {type(self).__name__} has no {what}, which {methods} would need",
            instead="use a method that passes columns back ('kflr', 'kfac_rp'), or define it",
        )


@dataclass(frozen=True)
class Fixed(Jacobian):
    """A Jacobian that all samples share: its products with blocks are pulls of their columns."""

    def half(self, m: Value, name: str) -> Value:
        return self.each(self.builder.dense(m), name)

    def each(self, m: Value, name: str) -> Value:
        transpose = self.builder.transpose
        return transpose(self.pull(transpose(m), name))


@dataclass(frozen=True)
class Weighted(Fixed):
    """``y_s = x_s Wᵀ`` at each of ``places``."""

    weight: Value
    places: int = 1

    def push(self, r: Value, name: str) -> Value:
        return self._at_places(ir.MatMul(transpose_b=True), r, name)

    def pull(self, g: Value, name: str) -> Value:
        return self._at_places(ir.MatMul(), g, name)

    def _at_places(self, op: ir.MatMul, rows: Value, name: str) -> Value:
        result = self.builder.emit(
            op, self.builder.unflatten(rows, self.places), self.weight, name=name
        )
        return result if self.places == 1 else self.builder.emit(ir.Flatten(), result)

    def half(self, m: Value, name: str) -> Value:
        if m.is_square and self.places == 1:  # (M W)ᵀ shares its product with WᵀMW
            return self.builder.transpose(self.builder.multiply(m, self.weight))
        return super().half(m, name)

    def average(self, m: Value, other: Jacobian, name: str) -> Value:
        if isinstance(other, Weighted) and self.places == other.places == 1:
            return self.builder.congruence(self.weight, m, other.weight, name)
        return super().average(m, other, name)

    def each(self, m: Value, name: str) -> Value:
        if self.places == 1:
            return self.builder.emit(ir.MatMul(transpose_a=True), self.weight, m, name=name)
        return super().each(m, name)


@dataclass(frozen=True)
class Picked(Jacobian):
    """``y_j = x_{index_j}`` from ``size`` features, 0 where the index is -1: zeros and ones."""

    index: tuple[int, ...]
    size: int

    def push(self, r: Value, name: str) -> Value:
        return self.builder.emit(ir.Gather(self.index), r, name=name)

    def pull(self, g: Value, name: str) -> Value:
        return self.builder.emit(ir.Scatter(self.index, self.size), g, name=name)

    def half(self, m: Value, name: str) -> Value:
        return self.builder.emit(
            ir.Scatter(self.index, self.size, 0), self.builder.dense(m), name=name
        )

    def each(self, m: Value, name: str) -> Value:
        return self.builder.emit(ir.Scatter(self.index, self.size, -2), m, name=name)


@dataclass(frozen=True)
class Scaled(Jacobian):
    """``∂y/∂x = diag(b)``, of every sample or a number for all."""

    slope: Factor

    def push(self, r: Value, name: str) -> Value:
        return self._times(self.slope, r, name)

    def pull(self, g: Value, name: str) -> Value:
        return self._times(g, self.slope, name)

    def _times(self, a: Factor, b: Factor, name: str) -> Value:
        product = self.builder.times(a, b, name)
        assert isinstance(product, Value)
        return product

    def half(self, m: Value, name: str) -> Value:
        return self.builder.scale_rows(m, self.slope)

    def average(self, m: Value, other: Jacobian, name: str) -> Value:
        if isinstance(other, Scaled):
            return self.builder.schur(m, self.slope, other.slope, name)
        return super().average(m, other, name)

    def each(self, m: Value, name: str) -> Value:
        if isinstance(self.slope, Value):
            return self.builder.emit(ir.ScaleSides(True, False), m, self.slope, name=name)
        return m if self.slope == 1.0 else self.builder.scaled(m, self.slope)
