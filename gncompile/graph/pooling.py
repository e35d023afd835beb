"""Pooling: the maximum or the sum of every window of a grid, channel by channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .nodes import Op
from .windows import Window

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pool(Op):
    """A number for every window of every channel: ``[C · points] → [C · places]``."""

    window: Window

    def fits(self, size: int, sizes: list[int]) -> bool:
        points, places = math.prod(self.window.size), math.prod(self.window.places)
        return len(sizes) == 1 and sizes[0] % points == 0 and sizes[0] // points * places == size

    def describe(self, inputs: tuple[str, ...]) -> str:
        return f"{type(self).__name__.lower()}[{self.window}]({inputs[0]})"

    def _taps(self, x: torch.Tensor, fill: float) -> torch.Tensor:
        """``[N, C, T, k]``: what is behind each tap of every window, ``fill`` outside the grid."""
        import torch

        channels = x.unflatten(-1, (-1, math.prod(self.window.size)))
        sources = torch.tensor(self.window.sources, device=x.device)
        return torch.where(sources >= 0, channels[..., sources.clamp(min=0)], fill)


@dataclass(frozen=True)
class MaxPool(Pool):
    """The maximum of what a window sees of the grid; of equal ones the first has the slope, as torch's."""

    def plain(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._taps(inputs[0], -math.inf).max(dim=-1).values.flatten(-2)


@dataclass(frozen=True)
class SumPool(Pool):
    """The sum of what a window sees of the grid; an average is this over a constant."""

    def plain(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._taps(inputs[0], 0.0).sum(dim=-1).flatten(-2)
