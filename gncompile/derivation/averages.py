"""The running average of the parameters: what it is, and when it is better.

Second-order steps are long, so on noisy batches the parameters move around a minimum; their mean lies nearer
to it. While the loss falls without noise the latest parameters are the better ones. The program compares
both from time to time, on a batch that no update has used. What then is reported: ``reported.py``.
"""

from __future__ import annotations

import sympy

from ..functions.primitives import as_float, minimum, select
from ..program.builder import ProgramBuilder, Value
from .forward import Forward
from .optimiser import Optimiser

TAIL = 9
"""The average is over about this part of all updates, one in so many: the last."""

LEAD = 0.01
"""The part of the loss by which the averages have to be better for noise to lead."""
BETTER, LEADS = "average_is_better", "noise_leads"
"""States of the program: 1 or 0."""

a, b, k = sympy.symbols("a b k", real=True)


def parameter_average(builder: ProgramBuilder, parameter: Value) -> Value:
    """The running average of a parameter."""
    return builder.state(f"average.{parameter.name}", parameter.spec)


def average_parameters(optimiser: Optimiser) -> None:
    """``θ̄ ← ε θ̄ + (1 − ε) θ``, ``ε = min(1 − 9/(k + 8), bound)``, before the k-th update moves θ.

    So only parameters whose loss has been seen to be finite enter. Until the bound, ``Settings.average``,
    holds, that is a mean over about the last ninth of the updates (polynomial-decay averaging; Shamir and
    Zhang, Stochastic Gradient Descent for Non-smooth Optimization, 2013, with η = 8).
    """
    builder, count = optimiser.builder, optimiser.scalar("averaged")
    count = optimiser.write(count, k + 1, {k: count}, "averaged_now")
    decay = minimum(1 - TAIL / (k + TAIL - 1), as_float(optimiser.settings.average))
    weight = builder.pointwise(decay, {k: count}, name="average_decay")
    for parameter in optimiser.parameters():
        optimiser.lerp(parameter_average(builder, parameter), parameter, weight, "averaged")


class AveragedForward(Forward):
    """The forward pass at the averaged parameters."""

    def parameter(self, name: str, shape: tuple[int, ...]) -> Value:
        parameter = super().parameter(name, shape)
        trained = (each.parameters for each in self.graph.trained.values())
        if not any(name in names for names in trained):
            return parameter
        return parameter_average(self.builder, parameter)


def compare_average(optimiser: Optimiser, loss: Value, averaged_loss: Value) -> Value:
    """The state ``average_is_better``: whether a loss on samples not used yet is lower at the averages.

    Beside it the state ``noise_leads``: whether it is lower by more than :data:`LEAD`.
    """

    def note(name: str, gain: sympy.Expr) -> Value:
        now = select(gain, sympy.Integer(1), sympy.Integer(0))
        values = {a: loss, b: averaged_loss}
        return optimiser.write(optimiser.scalar(name), now, values, f"{name}_now")

    note(LEADS, a - b - as_float(LEAD) * sympy.Abs(a))
    return note(BETTER, a - b)
