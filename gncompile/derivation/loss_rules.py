"""A loss as instructions: value, gradient, output Hessian in every form a curvature method needs.

:func:`loss_rules` gives the rules of a declared loss for one network output z ``[N, K]``. All are per
sample and carry the loss's scale c; the mean over samples is taken by whoever uses them.
"""

from __future__ import annotations

from typing import Protocol

from ..losses.vocabulary import CoupledLoss, Loss, SeparableLoss, SumLoss
from ..program.builder import ProgramBuilder, Value
from .coupled_rules import CoupledRules
from .cross_entropy_rules import CrossEntropyRules
from .loss_target import LossTarget
from .separable_rules import SeparableRules
from .sum_rules import SumRules


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
    return _rules(LossTarget.of(builder, loss, z))


def _rules(target: LossTarget) -> LossRules:
    match target.loss:
        case SeparableLoss():
            return SeparableRules(target.loss, target)
        case CoupledLoss():
            return CoupledRules(target.loss, target)
        case SumLoss():
            return SumRules(target.loss, target, _rules)
    return CrossEntropyRules(target.loss, target)
