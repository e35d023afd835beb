"""Softmax and its logarithm of every sample on its own, at places of neighbouring features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .normalise import AtPlaces

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Softmax(AtPlaces):
    """``p_i = exp(x_i) / Σ_j exp(x_j)`` at every place, or ``log p_i``."""

    curved: ClassVar[tuple[tuple[int, int], ...]] = ((0, 0),)

    log: bool = False

    def is_constant(self, size: int) -> bool:
        return size == self.places

    def plain(self, *inputs: Tensor) -> Tensor:
        x = inputs[0].unflatten(-1, (self.places, -1))
        return (x.log_softmax(-1) if self.log else x.softmax(-1)).flatten(-2)
