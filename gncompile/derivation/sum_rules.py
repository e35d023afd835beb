"""The rules of a sum of losses, each of its own outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sympy

from ..losses.vocabulary import SumLoss
from ..program import operations as ir
from ..program.builder import Value
from ..program.specs import Spec, Structure
from .loss_target import LossTarget

if TYPE_CHECKING:
    from .loss_rules import LossRules


@dataclass
class SumRules:
    """``E_n = Σ_i E_n,i(z_i, y_i)`` where z is the outputs ``z_i`` side by side: blocks on a diagonal."""

    loss: SumLoss
    target: LossTarget
    rules: Callable[[LossTarget], LossRules]

    def __post_init__(self) -> None:
        whole = self.target
        self.builder, self.outputs = whole.builder, whole.z.width
        widths = self.loss.layout(self.outputs)
        self.places: list[tuple[int, ...]] = []
        self.terms: list[LossRules] = []
        first = start = 0
        for number, term in enumerate(self.loss.terms):
            self.places.append(tuple(range(first, first + term.size)))
            z = self._part(whole.z, number, f"z_{term.key}")
            target = LossTarget(
                self.builder, term.loss, z, whole.width, start, first, term.key, number
            )
            self.terms.append(self.rules(target))
            first, start = first + term.size, start + widths[term.key]

    def _part(self, value: Value, number: int, name: str) -> Value:
        """The columns of one term's outputs."""
        places = self.places[number]
        if len(places) == self.outputs:
            return value
        return self.builder.emit(ir.Gather(places), value, name=name)

    def _joined(self, parts: list[Value], name: str) -> Value:
        """The terms' rows side by side."""
        index = tuple(range(sum(part.width for part in parts)))
        return self.builder.emit(ir.Gather(index), *parts, name=name)

    def value(self) -> Value:
        """``(1/N) Σ_n E_n``, a scalar."""
        return self.builder.add(*(term.value() for term in self.terms), name="loss")

    def gradient(self) -> Value:
        """``∂E_n/∂z``: ``[N, K]``."""
        return self._joined([term.gradient() for term in self.terms], "g_output")

    def mean_hessian(self) -> Value:
        """``E[𝓗_L]``: block-diagonal, stored in full unless every block is diagonal."""
        blocks = [term.mean_hessian() for term in self.terms]
        if all(block.spec.is_thin for block in blocks):
            diagonals = [self._diagonal(block) for block in blocks]
            joined = self._joined(diagonals, "hessian_diagonal")
            return self.builder.as_matrix(joined, Structure.DIAGONAL, self.outputs)
        full = [self.builder.dense(block) for block in blocks]
        whole = self._block_diagonal(full, "hessian_mean")
        return self.builder.as_matrix(whole, Structure.SYMMETRIC, self.outputs)

    def _diagonal(self, block: Value) -> Value:
        """The diagonal of a thin block, as a vector."""
        if block.spec.shape:
            return block
        u, v = sympy.symbols("u v", real=True)
        zeros = self.builder.emit(ir.Zeros(Spec((block.spec.size,))), name="zeros")
        return self.builder.pointwise(u + v, {u: block, v: zeros}, name=f"{block.name}_diagonal")

    def _block_diagonal(self, blocks: list[Value], name: str) -> Value:
        """Blocks ``[…, k, k]`` on the diagonal of ``[…, K, K]``."""
        placed = []
        for block, places in zip(blocks, self.places, strict=True):
            columns = self.builder.emit(self._scatter(places, -1), block, name=f"{name}_columns")
            placed.append(self.builder.emit(self._scatter(places, -2), columns, name=f"{name}_rows"))
        return self.builder.add(*placed, name=name)

    def _scatter(self, places: tuple[int, ...], axis: int) -> ir.Scatter:
        return ir.Scatter(places, self.outputs, axis)

    def sample_hessians(self, *, exact: bool = False) -> Value:
        """``𝓗_L`` of every sample, ``[N, K, K]``."""
        blocks = [term.sample_hessians(exact=exact) for term in self.terms]
        return self._block_diagonal(blocks, "hessians")

    def hessian_product(self, r: Value) -> Value:
        """``𝓗_L r``: ``[N, K]``."""
        parts = [
            term.hessian_product(self._part(r, number, f"{r.name}_part"))
            for number, term in enumerate(self.terms)
        ]
        return self._joined(parts, "hessian_times_r")

    def root_columns(self) -> Value:
        """A chunk of columns of the terms' roots: ``[S, N, K]``; those of other terms are zero in each."""
        return self._joined([term.root_columns() for term in self.terms], "root_columns")

    def sampled_gradient(self) -> Value:
        """The terms' sampled gradients, whose draws are independent and have mean zero: ``[N, K]``."""
        return self._joined([term.sampled_gradient() for term in self.terms], "g_sampled")

    def projected_gradient(self) -> Value:
        """The terms' projected gradients, whose signs are independent: ``[N, K]``."""
        return self._joined([term.projected_gradient() for term in self.terms], "g_projected")
