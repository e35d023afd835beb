"""What a loss reads besides the network's output: columns of the target's rows, constants, and its scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import sympy

from ..losses.constants import WEIGHTS, constant_name
from ..losses.vocabulary import Loss, SeparableLoss
from ..program import operations as ir
from ..program.builder import ProgramBuilder, Value
from ..program.specs import Spec

SCALE = sympy.Symbol("c", positive=True)
"""The batch size, of which the scale c of a loss is a multiple where that is summed over samples."""
DIVISOR = sympy.Symbol("d", positive=True)
"""The mean over the batch's samples of what a weighted mean divides by."""
WEIGHT = sympy.Symbol("w", nonnegative=True)
"""The weights that a batch brings."""
OUTPUT_WEIGHT = sympy.Symbol("omega", nonnegative=True)
"""The weights of the outputs, the same for every sample."""

Symbols = dict[sympy.Symbol, Value]


@cache
def exact(number: float) -> sympy.Expr:
    """The fraction that a number was written as: ``1/3`` of 0.333…."""
    return sympy.nsimplify(number, rational=True)


@dataclass(frozen=True)
class LossTarget:
    """The rows ``[N, width]`` of a batch's target, for the samples that z holds.

    Those of one term of a sum begin at ``start``, its outputs at ``first``; ``term`` and ``number`` are its
    name and which it is.
    """

    builder: ProgramBuilder
    loss: Loss
    z: Value
    width: int
    start: int = 0
    first: int = 0
    term: str = ""
    number: int = 0

    @classmethod
    def of(cls, builder: ProgramBuilder, loss: Loss, z: Value) -> LossTarget:
        """The target of a whole loss."""
        return cls(builder, loss, z, sum(loss.layout(z.width).values()))

    def column(self, name: str, whole: bool = False) -> Value:
        """The columns called ``name`` in the loss's layout; of all samples of the batch if ``whole``."""
        rows, layout = self.z.spec.shape[0], self.loss.layout(self.z.width)
        y = self.builder.leaf("target", "y", ("N", self.width))
        if rows != "N" and not whole:
            y = self.builder.emit(ir.Share(rows), y, name=f"{y.name}_{rows}")
        if layout[name] == self.width:
            return y
        before = list(layout)[: list(layout).index(name)]
        first = self.start + sum(layout[each] for each in before)
        index = tuple(range(first, first + layout[name]))
        return self.builder.emit(ir.Gather(index), y, name=f"target_{name}")

    def constant(self, name: str, spec: Spec | None = None) -> Value:
        """A constant of the loss, one number an output unless ``spec`` says."""
        key = constant_name(self.term, name)
        return self.builder.leaf("constant", key, spec or Spec((self.z.width,)))

    def scale(self, outputs: int) -> tuple[sympy.Expr, Symbols]:
        """The scale c, times the weights, as an expression, with the values of its symbols.

        ``outputs`` is the number of what a mean over elements counts. The weights are columns of the target.
        """
        scale, layout = self.loss.scale, self.loss.layout(self.z.width)
        if scale.of_batch:
            divisor = self.column("divisor", whole=True)
            mean = self.builder.emit(ir.Total(mean=True), divisor, name="mean_weight")
            c, symbols = exact(scale.factor) / DIVISOR, {DIVISOR: mean}
        elif scale.over in ("sum", "outputs"):
            each = scale.factor if scale.over == "sum" else scale.value(1, outputs)
            c, symbols = each * SCALE, {SCALE: self.builder.leaf("scalar", "batch_size", ())}
        else:
            c, symbols = exact(scale.value(1, outputs)), {}
        if "weight" in layout:
            c, symbols = c * WEIGHT, symbols | {WEIGHT: self.column("weight")}
        if isinstance(self.loss, SeparableLoss) and self.loss.weights:
            c, symbols = c * OUTPUT_WEIGHT, symbols | {OUTPUT_WEIGHT: self.constant(WEIGHTS)}
        return c, symbols


def in_rows(builder: ProgramBuilder, value: Value, like: Value) -> Value:
    """``value`` with a row for every sample of ``like``, even where it is one number for all of them.

    What is summed over a row's elements must have them: a constant target ``1/K`` sums to 1 in a row of K.
    """
    if len(value.spec.shape) == len(like.spec.shape):
        return value
    return builder.emit(ir.Repeat(like.spec.shape), value, name=value.name)
