"""Networks and batches to time: the autoencoders of Hinton and Salakhutdinov (2006) on random data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ModelName = Literal["mnist", "curves"]
LossName = Literal["mse", "bce"]

WIDTHS: dict[ModelName, tuple[int, ...]] = {
    "mnist": (784, 1000, 500, 250, 30, 250, 500, 1000, 784),
    "curves": (784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784),
}


def summed_bce(z: Tensor, y: Tensor) -> Tensor:
    """BCE of logits, summed over outputs and averaged over samples: what ``"bce_with_logits"`` means."""
    return F.binary_cross_entropy_with_logits(z, y, reduction="sum") / z.shape[0]


@dataclass(frozen=True)
class Problem:
    """A tanh autoencoder with a linear code and linear outputs, a loss, and one batch of random images."""

    name: str
    widths: tuple[int, ...]
    loss: LossName
    model: nn.Sequential
    x: Tensor

    @classmethod
    def make(
        cls, name: str, widths: tuple[int, ...], batch: int, loss: LossName, seed: int = 0
    ) -> Problem:
        """Weights, then ``x`` uniform on [0, 1): ``[batch, widths[0]]``, both drawn from ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(name, widths, loss, autoencoder(widths), torch.rand(batch, widths[0]))

    @property
    def batch(self) -> int:
        """Number of samples N."""
        return self.x.shape[0]

    def pair(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, in a new tensor as from a loader."""
        x = self.x.detach()
        return x, x

    @property
    def torch_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss as torch computes it."""
        return nn.MSELoss() if self.loss == "mse" else summed_bce

    @property
    def declared_loss(self) -> str | nn.Module:
        """The same loss as gncompile takes it."""
        return nn.MSELoss() if self.loss == "mse" else "bce_with_logits"

    def on(self, device: torch.device) -> Problem:
        """The same problem with model and batch on ``device``."""
        return replace(self, model=copy.deepcopy(self.model).to(device), x=self.x.to(device))

    def fresh(self, dtype: torch.dtype = torch.float32) -> nn.Sequential:
        """A copy of the model, for a contestant that trains it."""
        return copy.deepcopy(self.model).to(dtype)


def autoencoder(widths: tuple[int, ...]) -> nn.Sequential:
    """Affine layers with tanh between them, except after the code (the narrowest layer) and the last."""
    layers = list(pairwise(widths))
    code = min(range(len(layers)), key=lambda i: layers[i][1])
    modules: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(layers):
        modules.append(nn.Linear(inputs, outputs))
        if i not in (code, len(layers) - 1):
            modules.append(nn.Tanh())
    return nn.Sequential(*modules)
