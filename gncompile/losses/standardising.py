"""The loss of standardised targets, for a network whose outputs and targets are in units of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

import sympy
import torch

from ..errors import LossError
from .loss_types import OUTPUT, TARGET, Loss, SeparableLoss
from .per_output import PerOutput
from .vocabulary import LossSpec, resolve_loss

_SCALE = "target_scale"


def standardised(loss: LossSpec, scale: torch.Tensor) -> Loss:
    """``Σ_j e(z_j / σ_j, y_j / σ_j)`` for a loss ``Σ_j e(z_j, y_j)`` of the differences ``z - y`` alone.

    With ``z = μ + σ u`` that is the loss of the standardised outputs u and targets ``(y - μ)/σ``, whatever
    the means, so training is as if the targets had been standardised, while outputs and targets keep their
    units. ``scale: [K]``, or one number, above 0. Of the squared error it is the weights ``1/σ²``.

    Raises :class:`LossError` for another loss: cross-entropies and rates have no units to be free of.

    >>> standardised("mse", torch.tensor([2.0, 10.0])).weights.values
    (0.25, 0.01)
    """
    declared = resolve_loss(loss)
    if not has_units(declared):
        raise LossError(
            f"the loss {declared.name!r} is not one of the differences z - y, which could be standardised",
            where="the loss",
            instead="standardise the inputs only, or use mse, huber, smooth_l1 or log_cosh",
        )
    scale = torch.as_tensor(scale, dtype=torch.float64)
    if (
        declared.sampler == "normal"
    ):  # keeps the sampler, which knows this form of the squared error
        return replace(declared, weights=PerOutput.of(scale**-2, "the scale of the targets"))
    symbol = sympy.Symbol(_SCALE, positive=True)
    inner = {OUTPUT: OUTPUT / symbol, TARGET: TARGET / symbol}
    slope, curvature = declared.slope_form, declared.curvature_form
    return replace(
        declared,
        expression=declared.expression.subs(inner, simultaneous=True),
        slope_form=slope and slope.subs(inner, simultaneous=True) / symbol,
        curvature_form=curvature and curvature.subs(inner, simultaneous=True) / symbol**2,
        constants=((_SCALE, PerOutput.of(scale, "the scale of the targets")), *declared.constants),
    )


def has_units(loss: Loss) -> TypeGuard[SeparableLoss]:
    """Whether ``loss`` is ``Σ_j e(z_j - y_j)`` with one e for all outputs, whose units then count."""
    if not isinstance(loss, SeparableLoss) or loss.weights or loss.constants:
        return False
    return is_of_differences(loss)


def is_of_differences(loss: Loss) -> bool:
    """Whether ``loss`` is a sum over outputs of functions of ``z - y``, as far as sympy sees."""
    if not isinstance(loss, SeparableLoss) or loss.extras:
        return False
    distance = sympy.Dummy("d", real=True)
    shifted = loss.expression.subs(OUTPUT, TARGET + distance)
    return TARGET not in sympy.expand(shifted).free_symbols
