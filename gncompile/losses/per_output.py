"""Numbers of a loss that differ from output to output: weights, the weight of positive targets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import LossError


@dataclass(frozen=True)
class PerOutput:
    """A small tensor as numbers, ``values`` row by row in its ``shape``, which broadcasts to the output's."""

    shape: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor, what: str) -> PerOutput:
        """The numbers of a tensor; :class:`LossError` naming ``what`` unless finite and not negative."""
        values = tuple(map(float, tensor.detach().reshape(-1).tolist()))
        bad = [value for value in values if not 0 <= value < math.inf]
        if bad:
            raise LossError(
                f"{what} holds {bad[0]:g}, and a loss with such a weight is not convex",
                where="the loss",
                instead="use finite weights, none of them negative",
            )
        return cls(tuple(tensor.shape), values)

    def broadcast(self, shape: tuple[int, ...], what: str) -> PerOutput:
        """The numbers of every output, for outputs of this ``shape`` a sample."""
        own = torch.tensor(self.values, dtype=torch.float64).reshape(self.shape)
        while own.dim() > len(shape) and own.shape[0] == 1:
            own = own[0]
        try:
            values = own.expand(shape).reshape(-1).tolist()
        except RuntimeError:
            batch = ", ".join(["N", *map(str, shape)])
            raise LossError(
                f"{what} has the shape {list(self.shape)}, the network's output is [{batch}]",
                where="the loss",
                instead="give weights that are the same for every sample here, and those of samples with "
                "each batch: gncompile.losses.weighted",
            ) from None
        return PerOutput(shape, tuple(values))
