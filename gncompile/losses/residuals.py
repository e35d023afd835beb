"""A loss without its reduction: what statistics count, whatever sums and means a batch's loss is under."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from torch import Tensor

from ..functions.expressions import evaluate
from .loss_types import Loss, SeparableLoss
from .separable import OUTPUT, TARGET
from .sum_loss import SumLoss


@dataclass(frozen=True)
class Squares:
    """``e_n = ½ Σ_j w_j (z_j − y_j)²``, all else of the loss being the same for every z."""

    target: Tensor
    weights: Tensor
    """``[N, K]`` both; the weights are those of batch, loss and variances."""

    def sum(self, z: Tensor) -> float:
        """``½ Σ_n e_n`` of outputs ``[N, K]``; a residual of weight 0 may be anything."""
        residuals = (z - self.target).masked_fill(self.weights == 0, 0.0)
        return float((self.weights * residuals**2).sum()) / 2

    @property
    def count(self) -> int:
        """The residuals that have a weight."""
        return int((self.weights > 0).sum())


@dataclass(frozen=True)
class Unreduced:
    """``N Ē = unit · Σ_n e_n`` on a batch of N samples, with the ``squares`` that e is made of, if it is.

    The losses of several outputs have a scale each, and their unit is 1.
    """

    unit: float
    squares: Squares | None = None

    @classmethod
    def of(cls, loss: Loss, rows: Tensor, outputs: int) -> Unreduced:
        """Of a bound ``loss`` of K = ``outputs`` outputs, for targets as a program reads them."""
        if isinstance(loss, SumLoss):
            return cls(1.0)
        layout, scale, samples = loss.layout(outputs), loss.scale, len(rows)
        parts = dict(zip(layout, rows.split(list(layout.values()), dim=1), strict=True))
        unit = scale.value(samples, outputs)
        if scale.of_batch:
            unit = scale.factor * samples / float(parts["divisor"].sum())
        if not isinstance(loss, SeparableLoss) or not _squared(loss):
            return cls(unit)
        h, weights = loss.curvature, parts.get("weight", rows.new_ones(samples, outputs))
        if loss.weights is not None:
            weights = weights * rows.new_tensor(loss.weights.values)
        if h.is_number:
            unit *= float(h)
        else:
            weights = weights * evaluate(h, {each: parts[str(each)] for each in h.free_symbols})
        return cls(unit, Squares(parts["y"], weights))


def _squared(loss: SeparableLoss) -> bool:
    """Whether ``e' = h (z − y)``, h a number or made of what a batch brings beside the target."""
    h, brought = loss.curvature, {sympy.Symbol(name, positive=True) for name in loss.extras}
    around = sympy.simplify(loss.slope - h * (OUTPUT - TARGET)) == 0
    return around and h.free_symbols <= brought
