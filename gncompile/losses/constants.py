"""The constant tensors of a loss, which its programs read by name."""

from __future__ import annotations

import torch

from .loss_types import Loss, SoftmaxCrossEntropy
from .per_output import PerOutput
from .sum_loss import SumLoss

WEIGHTS, BLOCKS = "weights", "blocks"
"""The weights of the outputs; and 1 where two outputs belong to one place, else 0."""


def constant_name(term: str, name: str) -> str:
    """The name of a constant ``name`` of the loss of an output ``term``, or of the only one, ``""``."""
    return ".".join(filter(None, ("loss", term, name)))


def constants_of(loss: Loss, names: set[str], term: str = "") -> dict[str, torch.Tensor]:
    """Those constants of ``loss`` that are called by ``names``, in float64."""
    if isinstance(loss, SumLoss):
        tables = [constants_of(each.loss, names, each.key) for each in loss.terms]
        return {name: tensor for table in tables for name, tensor in table.items()}
    found = {
        name: torch.tensor(each.values, dtype=torch.float64)
        for name, each in _numbers(loss).items()
    }
    found = {constant_name(term, name): tensor for name, tensor in found.items()}
    blocks = constant_name(term, BLOCKS)
    if isinstance(loss, SoftmaxCrossEntropy) and blocks in names:
        classes = torch.ones(loss.classes, loss.classes, dtype=torch.float64)
        found[blocks] = torch.kron(classes, torch.eye(loss.count, dtype=torch.float64))
    return {name: tensor for name, tensor in found.items() if name in names}


def _numbers(loss: Loss) -> dict[str, PerOutput]:
    constants = dict(getattr(loss, "constants", ()))
    weights = getattr(loss, "weights", None)
    return constants | ({WEIGHTS: weights} if weights else {})
