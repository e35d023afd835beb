"""Convolutions: one weight at every place of a grid.

A sample is ``[C · P]``, its channels one after the other. At each of T places the weight ``[outputs,
columns]`` meets a patch of its input, so the layer is affine at T places
(docs/mathematics.md#one-weight-many-uses).

In ``groups`` every group of channels is a use of its own rows of the weight: its places are counted for each
group, the groups share the input factor Q, their mean, and Ḡ has a block for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .layers import LayerOp
from .windows import Geometry

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@dataclass(frozen=True)
class Convolution(LayerOp):
    """``h = W ⋆ x + b``."""

    geometry: Geometry = field(kw_only=True)
    places_last: ClassVar[bool] = True

    def fits(self, size: int, sizes: list[int]) -> bool:
        return (
            sizes == [self.geometry.size] and size == self.geometry.outputs * self.geometry.places
        )

    def matrix(self, size: int, sizes: list[int]) -> tuple[int, int]:
        return self.geometry.outputs, self.geometry.columns

    def places_in(self, size: int, sizes: list[int]) -> int:
        return self.geometry.groups * self.geometry.places

    def apply(self, weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
        g, w = self.geometry, self.geometry.window
        x = inputs[0].unflatten(-1, (g.inputs, *w.size))
        kernels = weight.reshape(g.outputs, -1, *w.kernel)
        convolve = _CONVOLVE[len(w.size)]
        return convolve(x, kernels, bias, w.stride, w.padding, w.dilation, g.groups).flatten(1)

    def input_rows(self, *inputs: Tensor) -> Tensor:
        return patches(inputs[0], self.geometry)

    def describe(self, inputs: tuple[str, ...]) -> str:
        text = f"convolution[{self.layer}: {self.geometry}]({inputs[0]})"
        return text + ("" if self.bias else " without bias")


@dataclass(frozen=True)
class ConvolutionTransposed(LayerOp):
    """``y = W ∗ x``, the adjoint of the convolution that ``geometry`` describes, from y's grid to x's.

    x meets the rows of the weight, and what the columns give is summed where it overlaps. A bias is no part
    of that; it is a trainable vector that is added.
    """

    geometry: Geometry = field(kw_only=True)

    def fits(self, size: int, sizes: list[int]) -> bool:
        return size == self.geometry.size and sizes == [
            self.geometry.outputs * self.geometry.places
        ]

    def matrix(self, size: int, sizes: list[int]) -> tuple[int, int]:
        return self.geometry.outputs, self.geometry.columns

    def places_in(self, size: int, sizes: list[int]) -> int:
        return self.geometry.groups * self.geometry.places

    @property
    def reversed(self) -> bool:
        return True

    def apply(self, weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
        g, w = self.geometry, self.geometry.window
        x = inputs[0].unflatten(-1, (g.outputs, *w.places))
        kernels = weight.reshape(g.outputs, -1, *w.kernel)
        convolve = _TRANSPOSED[len(w.size)]
        return convolve(
            x, kernels, bias, w.stride, w.padding, w.beyond, g.groups, w.dilation
        ).flatten(1)

    def input_rows(self, *inputs: Tensor) -> Tensor:
        g = self.geometry
        return inputs[0].unflatten(-1, (g.outputs, g.places)).mT

    def describe(self, inputs: tuple[str, ...]) -> str:
        return f"transposed convolution[{self.layer}: {self.geometry}]({inputs[0]})"


def patches(x: Tensor, g: Geometry) -> Tensor:
    """``[N, groups · T, columns]``: what the weight meets, group by group, in plain torch."""
    channels = x.unflatten(-1, (g.groups, -1, math.prod(g.window.size)))
    sources = torch.tensor(g.window.sources, device=x.device)
    taps = torch.where(sources >= 0, channels[..., sources.clamp(min=0)], 0.0)
    return taps.movedim(-2, -3).flatten(-2).flatten(1, 2)
