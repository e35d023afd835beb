"""Blocks of curvature and what the recursion does with them: two representations of one block.

:class:`Averaged` is one block ``E[(∂z/∂s)ᵀ 𝓗_L (∂z/∂t)]`` for the batch, a structured matrix; the average is
taken anew at every pointwise layer. :class:`PerSample` is the same block for every sample, ``[N, d, e]``.
The recursion over the graph, in ``recursion``, is the same for both.
"""

from __future__ import annotations

from ..program import operations as ir
from ..program.builder import ProgramBuilder, Value
from .forward import NodeRule
from .jacobians import Jacobian


class Averaged:
    """Blocks averaged over the batch; a pointwise layer averages its slopes (the approximation of KFRA)."""

    composes = True
    """Slopes are composed over connected pointwise nodes before anything is averaged."""

    def __init__(self, builder: ProgramBuilder) -> None:
        self.builder = builder

    def left(self, j: Jacobian, m: Value, name: str) -> Value:
        """``E[J]ᵀ M``."""
        return j.half(m, name)

    def both(self, j: Jacobian, m: Value, k: Jacobian, name: str) -> Value:
        """``E[Jᵀ M K]``."""
        return j.average(m, k, name)

    def right(self, m: Value, k: Jacobian, name: str) -> Value:
        """``M E[K]``."""
        return self.builder.transpose(k.half(self.builder.transpose(m), name))

    def add(self, blocks: list[Value], name: str) -> Value:
        """Sum of contributions to one block."""
        return self.builder.add_blocks(blocks, name)

    def transpose(self, m: Value) -> Value:
        """The block of the exchanged pair."""
        return self.builder.transpose(m)

    def plus_transpose(self, m: Value) -> Value:
        """``M + Mᵀ``, the two cross terms of a pair with itself."""
        return self.builder.plus_transpose(m)

    def curve(self, rule: NodeRule, g: Value, i: int, j: int) -> Value | None:
        """The second-derivative term, which Gauss-Newton drops."""
        return None

    def output_factor(self, m: Value, symmetric: bool) -> Value:
        """Ḡ of a layer from the block at its pre-activation, or what is between two uses of a layer."""
        return m


class PerSample:
    """Blocks ``[N, d, e]`` for every sample, exact; with ``curved`` the Hessian instead of Gauss-Newton."""

    composes = False

    def __init__(self, builder: ProgramBuilder, curved: bool) -> None:
        self.builder = builder
        self.curved = curved

    def left(self, j: Jacobian, m: Value, name: str) -> Value:
        """``J_nᵀ M_n``."""
        return j.each(m, name)

    def both(self, j: Jacobian, m: Value, k: Jacobian, name: str) -> Value:
        """``J_nᵀ M_n K_n``."""
        return self.right(self.left(j, m, name), k, name)

    def right(self, m: Value, k: Jacobian, name: str) -> Value:
        """``M_n K_n``."""
        return self.transpose(self.left(k, self.transpose(m), name))

    def add(self, blocks: list[Value], name: str) -> Value:
        """Sum of contributions to one block."""
        return self.builder.add(*blocks, name=name)

    def transpose(self, m: Value) -> Value:
        """The block of the exchanged pair."""
        return self.builder.emit(ir.Transpose(), m)

    def plus_transpose(self, m: Value) -> Value:
        """``M_n + M_nᵀ``."""
        return self.builder.add(m, self.transpose(m))

    def curve(self, rule: NodeRule, g: Value, i: int, j: int) -> Value | None:
        """``Σ_k g_k ∂²y_k/∂x_i∂x_j``, the term D of the Hessian recursion [BRB eq. 11]."""
        return rule.curve(g, i, j) if self.curved else None

    def output_factor(self, m: Value, symmetric: bool) -> Value:
        """The batch mean of the exact blocks."""
        return self.builder.emit(ir.Mean(matrix=symmetric), m)


Representation = Averaged | PerSample
