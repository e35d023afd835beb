"""A loss as instructions: value, gradient, output Hessian in every form a curvature method needs.

:func:`loss_rules` gives the rules of a declared loss for one network output z ``[N, K]``. All are per
sample and carry the loss's scale c; the mean over samples is taken by whoever uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import sympy

from ..losses.vocabulary import CoupledLoss, Loss, SeparableLoss, SumLoss
from ..program import operations as ir
from ..program.builder import ProgramBuilder, Value
from ..program.specs import Spec, Structure
from .coupled_rules import CoupledRules
from .cross_entropy_rules import CrossEntropyRules
from .loss_target import LossTarget
from .separable_rules import SeparableRules


class LossRules(Protocol):
    """What every loss provides; shapes in the docstrings of the implementations."""

    def value(self) -> Value: ...
    def gradient(self) -> Value: ...
    def mean_hessian(self) -> Value: ...
    def sample_hessians(self, *, exact: bool = False) -> Value: ...
    def hessian_product(self, r: Value) -> Value: ...
    def root_columns(self) -> Value: ...
    def sampled_gradient(self) -> Value: ...
    def projected_gradient(self) -> Value: ...


def loss_rules(builder: ProgramBuilder, loss: Loss, z: Value) -> LossRules:
    """The rules of ``loss``, bound to the network's outputs, at output ``z``: ``[N, K]``."""
    return rules_at(LossTarget.of(builder, loss, z))


def rules_at(target: LossTarget) -> LossRules:
    """The rules of a loss, which may be a term of a sum, with its target."""
    match target.loss:
        case SeparableLoss():
            return SeparableRules(target.loss, target)
        case CoupledLoss():
            return CoupledRules(target.loss, target)
        case SumLoss():
            return SumRules(target.loss, target)
    return CrossEntropyRules(target.loss, target)


@dataclass
class SumRules:
    """``E_n = Σ_i E_n,i(z_i, y_i)`` where z is the outputs ``z_i`` side by side: blocks on a diagonal."""

    loss: SumLoss
    target: LossTarget

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
            self.terms.append(rules_at(target))
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
            placed.append(
                self.builder.emit(self._scatter(places, -2), columns, name=f"{name}_rows")
            )
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
