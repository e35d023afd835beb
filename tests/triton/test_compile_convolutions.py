"""Ahead-of-time tier: convolutions as implicit products, of a strided layer of a residual network.

With default settings at the default precision; what must hold is what holds for any matrix kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from gncompile.graph.windows import Geometry, Window
from gncompile.triton_kernels.convolution import (
    convolve,
    convolve_adjoint,
    convolve_gradient,
    patch_moment,
)
from gncompile.triton_kernels.launches import Launch
from gncompile.triton_kernels.resources import resources
from gncompile.triton_kernels.settings import SHARED_MEMORY
from gncompile.triton_kernels.tiles import scaled

LAYER = Geometry(Window((32, 32), (3, 3), (2, 2), (1, 1), (1, 1)), 16, 32)
BATCH = 128


@triton.jit
def sigmoid_and_slope(h):
    a = tl.sigmoid(h)
    return a, a * (1.0 - a)


def inputs() -> Tensor:
    return torch.empty(BATCH, LAYER.size)


def vectors() -> Tensor:
    return torch.empty(BATCH, LAYER.outputs * LAYER.places)


def weight() -> Tensor:
    return torch.empty(LAYER.outputs, LAYER.columns)


def forward() -> list[Launch]:
    return convolve.launches(
        inputs(), weight(), vectors(), LAYER, bias=torch.empty(LAYER.outputs),
        epilogue=sigmoid_and_slope, outputs=[vectors()],
    )  # fmt: skip


def back() -> list[Launch]:
    x = inputs()
    return convolve_adjoint.launches(
        vectors(), weight(), inputs(), LAYER, epilogue=scaled, epilogue_inputs=[x]
    )


def gradient() -> list[Launch]:
    out = torch.empty(LAYER.outputs, LAYER.columns + 1)
    return convolve_gradient.launches(
        vectors(), inputs(), out, LAYER, alpha=1 / BATCH, homogeneous=True
    )


def moment() -> list[Launch]:
    out = torch.empty(LAYER.columns + 1, LAYER.columns + 1)
    return patch_moment.launches(inputs(), out, LAYER, alpha=1 / BATCH, homogeneous=True)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("form", [forward, back, gradient, moment])
def test_nothing_is_spilled(form: Callable[[], list[Launch]], capability: int) -> None:
    used = resources(form()[0], capability)
    assert used.spilled == 0, used
    assert not used.is_trap
    assert used.shared <= SHARED_MEMORY[capability]
    assert used.instructions["fma"] > 0
    assert used.copies[4] + used.copies[16] > 0, (
        "operands are on their way while others are multiplied"
    )
