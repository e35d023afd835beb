"""What every optimiser of a comparison is given: a network, a loss, and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ...data.data_sets import DataSplit
from ...losses.vocabulary import Loss

Objective = Callable[[Tensor, Tensor], Tensor]
EVALUATED = 5000
"""Samples, of the training and of the validation data, that a reported loss is measured on at most."""


Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A network to train, and how its loss is measured.

    ``build(seed)`` returns the module with fresh weights. ``loss`` is what :func:`gncompile.compile` takes,
    ``objective(z, y)`` the same loss as torch computes it: for the first-order methods' gradients, and for
    the reported losses of all. ``options`` go to :func:`gncompile.compile`; ``l2(name)`` is the coefficient
    η of a parameter in them, which the first-order methods minimise too.
    """

    name: str
    build: Callable[[int], nn.Module]
    loss: str | Loss | nn.Module
    objective: Objective
    data: DataSplit
    batch_size: int
    options: Mapping[str, object] = field(default_factory=dict)
    l2: Callable[[str], float] = lambda name: 0.0

    @property
    def full_batch(self) -> bool:
        """Whether one batch holds all training samples."""
        return self.batch_size >= len(self.data.train_x)

    @cached_property
    def outputs(self) -> int:
        """Outputs K of the network."""
        with torch.no_grad():
            return self.build(0)(self.data.train_x[:1]).numel()

    def losses(self, model: nn.Module) -> tuple[float, float]:
        """The loss on the first :data:`EVALUATED` training samples, and on as many validation samples."""
        data = self.data
        return (
            self._loss(model, data.train_x[:EVALUATED], data.train_y[:EVALUATED]),
            self._loss(model, data.validation_x[:EVALUATED], data.validation_y[:EVALUATED]),
        )

    @torch.no_grad()
    def _loss(self, model: nn.Module, x: Tensor, y: Tensor) -> float:
        return float(self.objective(model(x), y))
