"""Local Jacobians of a node, and what they do to a block of curvature: two representations of one block.

:class:`Averaged` is one block ``E[(∂z/∂s)ᵀ 𝓗_L (∂z/∂t)]`` for the batch, a structured matrix; the average is
taken anew at every pointwise layer. :class:`PerSample` is the same block for every sample, ``[N, d, e]``.
The recursion over the graph, in ``recursion``, is the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.model_graph import Node
from ..program import step_program as ir
from ..program.builder import Factor, ProgramBuilder, Value
from .propagation import Forward


@dataclass(frozen=True)
class Weighted:
    """``y = x Wᵀ``: Jacobian W."""

    weight: Value


@dataclass(frozen=True)
class Picked:
    """``y_j = x_{index_j}``: a Jacobian of zeros and ones."""

    index: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Scaled:
    """``∂y/∂x = diag(b)`` per sample."""

    slope: Factor


Jacobian = Weighted | Picked | Scaled


class Averaged:
    """Blocks averaged over the batch; a pointwise layer averages its slopes (the approximation of KFRA)."""

    composes = True
    """Slopes are composed over connected pointwise nodes before anything is averaged."""

    def __init__(self, builder: ProgramBuilder) -> None:
        self.builder = builder

    def left(self, j: Jacobian, m: Value, name: str) -> Value:
        """``Jᵀ M``, ``E[b] ⊙ M`` by rows."""
        match j:
            case Weighted(w) if m.is_square:
                # (M W)ᵀ shares its product with WᵀMW.
                return self.builder.transpose(self.builder.multiply(m, w))
            case Weighted(w):
                return self.builder.emit(ir.MatMul(transpose_a=True), w, m, name=name)
            case Picked(index, size):
                return self.builder.emit(
                    ir.Scatter(index, size, 0), self.builder.dense(m), name=name
                )
            case Scaled(b):
                return self.builder.scale_rows(m, b)

    def both(self, j: Jacobian, m: Value, k: Jacobian, name: str) -> Value:
        """``Jᵀ M K``, or ``M ⊙ E[b cᵀ]``."""
        if isinstance(j, Scaled) and isinstance(k, Scaled):
            return self.builder.schur(m, j.slope, k.slope, name)
        if isinstance(j, Weighted) and isinstance(k, Weighted):
            return self.builder.congruence(j.weight, m, k.weight, name)
        result = self.right(self.left(j, m, name), k, name)
        if j == k and m.is_square:
            size = result.spec.shape[0]
            assert isinstance(size, int)
            return self.builder.as_matrix(result, ir.Structure.SYMMETRIC, size)
        return result

    def right(self, m: Value, k: Jacobian, name: str) -> Value:
        """``M K``."""
        return self.builder.transpose(self.left(k, self.builder.transpose(m), name))

    def add(self, blocks: list[Value], name: str) -> Value:
        """Sum of contributions to one block."""
        return self.builder.add_blocks(blocks, name)

    def transpose(self, m: Value) -> Value:
        """The block of the exchanged pair."""
        return self.builder.transpose(m)

    def plus_transpose(self, m: Value) -> Value:
        """``M + Mᵀ``, the two cross terms of a pair with itself."""
        return self.builder.plus_transpose(m)

    def curve(self, forward: Forward, node: Node, g: Value, i: int, j: int) -> Value | None:
        """The second-derivative term, which Gauss-Newton drops."""
        return None

    def output_factor(self, m: Value) -> Value:
        """Ḡ of a layer from the block at its pre-activation."""
        return m


class PerSample:
    """Blocks ``[N, d, e]`` for every sample, exact; with ``curved`` the Hessian instead of Gauss-Newton."""

    composes = False

    def __init__(self, builder: ProgramBuilder, curved: bool) -> None:
        self.builder = builder
        self.curved = curved

    def left(self, j: Jacobian, m: Value, name: str) -> Value:
        """``J_nᵀ M_n``."""
        match j:
            case Weighted(w):
                return self.builder.emit(ir.MatMul(transpose_a=True), w, m, name=name)
            case Picked(index, size):
                return self.builder.emit(ir.Scatter(index, size, -2), m, name=name)
            case Scaled(b):
                if isinstance(b, Value):
                    return self.builder.emit(ir.ScaleSides(True, False), m, b, name=name)
                return m if b == 1.0 else self.builder.scaled(m, b)

    def both(self, j: Jacobian, m: Value, k: Jacobian, name: str) -> Value:
        """``J_nᵀ M_n K_n``."""
        return self.right(self.left(j, m, name), k, name)

    def right(self, m: Value, k: Jacobian, name: str) -> Value:
        """``M_n K_n``."""
        return self.transpose(self.left(k, self.transpose(m), name))

    def add(self, blocks: list[Value], name: str) -> Value:
        """Sum of contributions to one block."""
        return blocks[0] if len(blocks) == 1 else self.builder.add(*blocks, name=name)

    def transpose(self, m: Value) -> Value:
        """The block of the exchanged pair."""
        return self.builder.emit(ir.Transpose(), m)

    def plus_transpose(self, m: Value) -> Value:
        """``M_n + M_nᵀ``."""
        return self.builder.add(m, self.transpose(m))

    def curve(self, forward: Forward, node: Node, g: Value, i: int, j: int) -> Value | None:
        """``diag(∂²φ/∂x_i∂x_j ⊙ ∂E/∂y)``, the term D of the Hessian recursion [BRB eq. 11]."""
        second = forward.second(node, i, j) if self.curved else 0.0
        if second == 0.0:
            return None
        d = self.builder.times(g, second)
        assert isinstance(d, Value)
        return self.builder.emit(ir.SampleDiagonal(), d)

    def output_factor(self, m: Value) -> Value:
        """The batch mean of the exact blocks."""
        return self.builder.emit(ir.Mean(), m)


Representation = Averaged | PerSample
