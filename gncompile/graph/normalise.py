"""Normalisation of every sample on its own: places of features, made free of their mean, or of one length.

======================================  ==========================================
layer norm, group norm, instance norm   ``Normalise(P, eps)`` of ``Centre(P)``
RMS norm                                ``Normalise(P, eps)``
``F.normalize``                         ``Normalise(P, eps, length=True)``
======================================  ==========================================

The P places stand one after another, in a group norm the groups; scale and shift are elementwise nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .nodes import Op

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AtPlaces(Op):
    """A map of every place alone, from as many features to as many."""

    places: int

    def fits(self, size: int, sizes: list[int]) -> bool:
        return sizes == [size] and size % self.places == 0

    def describe(self, inputs: tuple[str, ...]) -> str:
        at = f"[{self.places} places]" if self.places > 1 else ""
        return f"{type(self).__name__.lower()}{at}({', '.join(inputs)})"


@dataclass(frozen=True)
class Centre(AtPlaces):
    """``y = x − mean(x)`` at every place."""

    def is_constant(self, size: int) -> bool:
        return size == self.places

    def plain(self, *inputs: Tensor) -> Tensor:
        x = inputs[0].unflatten(-1, (self.places, -1))
        return (x - x.mean(-1, keepdim=True)).flatten(-2)


@dataclass(frozen=True)
class Normalise(AtPlaces):
    """``y = x / √(mean(x²) + eps)`` at every place, or with ``length`` ``x / max(|x|, eps)``."""

    curved: ClassVar[tuple[tuple[int, int], ...]] = ((0, 0),)

    eps: float
    length: bool = False

    def plain(self, *inputs: Tensor) -> Tensor:
        x = inputs[0].unflatten(-1, (self.places, -1))
        if self.length:
            y = x / x.norm(dim=-1, keepdim=True).clamp_min(self.eps)
        else:
            y = x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return y.flatten(-2)
