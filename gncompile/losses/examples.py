"""Random targets that a loss accepts, to try it with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .loss_types import CoupledLoss, Loss, SeparableLoss, SoftmaxCrossEntropy, SumLoss


def example_target(
    loss: Loss, batch: int, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype
) -> Any:
    """Targets of ``batch`` samples as a batch has them, for outputs of this per-sample ``shape``."""

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator, dtype=dtype)

    if isinstance(loss, SumLoss):
        terms = {
            term.key: example_target(term.loss, batch, term.shape, generator, dtype)
            for term in loss.terms
        }
        return terms if loss.named else tuple(terms.values())
    if isinstance(loss, SoftmaxCrossEntropy):
        classes = shape[0]
        target = torch.randint(classes, (batch, *loss.places), generator=generator)
    else:
        low, high = loss.targets
        low = max(low, 0.0) if high > 0 else high - 1.0
        wide = (loss.targets_count,) if isinstance(loss, CoupledLoss) else shape
        target = low + (min(high, low + 1.0) - low) * uniform(batch, *wide)
    parts = [target]
    if isinstance(loss, SeparableLoss):
        parts += [0.5 + uniform(batch, *shape) for _ in loss.extras]
    if loss.weighted:
        parts.append(uniform(batch))
    return tuple(parts) if loss.structured else target
