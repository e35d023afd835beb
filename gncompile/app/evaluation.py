"""The loss and the metrics of a plain module on data: one way for the report, the commands and Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.torch_network import flat_output, objective
from ..losses.targets import mapped
from ..losses.vocabulary import Loss, SeparableLoss
from ..training.metrics import mean_of, metric_values

ROWS = 1000
"""Samples that go through a module at once."""

Inputs = Tensor | tuple[Tensor, ...]


def device_of_module(module: nn.Module) -> torch.device:
    """Where a module computes."""
    return next(module.parameters()).device


def outputs_of(module: nn.Module, x: Inputs, rows: int = ROWS) -> Tensor:
    """The module's outputs ``[N, K]`` in evaluation mode, a few rows at a time, without gradients.

    They are computed where the module is, and returned on the host.
    """
    given = (x,) if isinstance(x, Tensor) else x
    mode, device = module.training, device_of_module(module)
    module.eval()
    try:
        with torch.no_grad():
            parts = [
                flat_output(
                    module(*(each[start : start + rows].to(device) for each in given))
                ).cpu()
                for start in range(0, len(given[0]), rows)
            ]
    finally:
        module.train(mode)
    return torch.cat(parts)


def evaluated(
    module: nn.Module, loss: Loss, x: Inputs, y: Any, metrics: Sequence[str] = ()
) -> dict[str, float]:
    """``{"loss": …, METRIC: …}`` of a whole data set: the loss as training has it, without penalties.

    The loss is computed by torch from its formula, not by the compiled program; in the dtype of the module,
    so that the two agree to roundings.
    """
    outputs, y = outputs_of(module, x), mapped(lambda each: each.cpu(), y)
    with torch.no_grad():
        value = float(objective(loss, None)(outputs, y))
    return {"loss": value, **metric_values(metrics, outputs, y, loss)}


def predicted(loss: Loss, outputs: Tensor) -> Tensor:
    """``ŷ = μ(z)``, what outputs predict of numbers: themselves, or a Bernoulli's and a Poisson's mean."""
    mean = mean_of(loss) if isinstance(loss, SeparableLoss) else None
    return outputs if mean is None else mean(outputs)
