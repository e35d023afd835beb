"""Where in a target's rows the weighted means of a loss find what they divide by."""

from __future__ import annotations

import torch
from torch import Tensor

from .loss_types import Loss
from .sum_loss import SumLoss


def divisors(loss: Loss, outputs: int) -> list[int]:
    """The columns of a target's rows that hold the d of a scale; see :class:`~gncompile.losses.Scale`."""
    layout, first, found = loss.layout(outputs), 0, []
    inner = {term.key: term for term in loss.terms} if isinstance(loss, SumLoss) else {}
    for name, width in layout.items():
        if name in inner:
            found += [first + each for each in divisors(inner[name].loss, inner[name].size)]
        elif name == "divisor":
            found.append(first)
        first += width
    return found


def as_parts(loss: Loss, outputs: int, rows: Tensor, mean: Tensor | None = None) -> Tensor:
    """Rows of which any part, weighed by its share of the samples, adds up to the loss of the whole.

    What a weighted mean divides by becomes the mean over all samples, of these rows unless it is given.
    """
    columns = divisors(loss, outputs)
    if not columns:
        return rows
    whole = rows.clone()
    whole[:, columns] = rows[:, columns].mean(dim=0) if mean is None else mean
    return whole


def divisor_sums(loss: Loss, outputs: int, rows: Tensor) -> Tensor:
    """The sums over samples of what weighted means divide by."""
    return torch.sum(rows[:, divisors(loss, outputs)], dim=0)
