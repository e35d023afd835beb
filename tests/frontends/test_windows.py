"""Convolutions and pooling in the frontend: the graph computes what the module does, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gncompile.errors import TraceError
from gncompile.frontends.torch_export import trace
from gncompile.graph.torch_network import Network


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def kinds(module: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """The nodes that a module becomes behind an affine layer, after a comparison of values."""
    torch.manual_seed(0)
    size = torch.Size(shape).numel()
    whole = nn.Sequential(nn.Linear(3, size), nn.Unflatten(1, shape), module, nn.Flatten()).double()
    x = torch.randn(4, 3).double()
    traced = trace(whole, x)
    torch.testing.assert_close(Network(traced)(traced.parameters, (x,)), whole(x))
    return [type(node.op).__name__ for node in traced.graph][2:-1]


POOLS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "max1": (nn.MaxPool1d(2), (2, 7), ["MaxPool"]),
    "max2 ceil": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 5, 6), ["MaxPool"]),
    "max2 dilated": (nn.MaxPool2d((2, 3), dilation=(2, 1)), (2, 5, 6), ["MaxPool"]),
    "max3": (nn.MaxPool3d(2), (1, 4, 4, 5), ["MaxPool"]),
    "max without channels": (nn.MaxPool2d(2), (4, 4), ["MaxPool"]),
    "max of a point": (nn.MaxPool2d(1), (2, 2, 3), []),
    "max adaptive": (nn.AdaptiveMaxPool2d((3, 1)), (2, 6, 4), ["MaxPool"]),
    "behind an assignment": (
        nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)), (2, 6, 4), ["Pointwise", "MaxPool"],
    ),
    "average": (nn.AvgPool2d(3, 2, 1), (2, 5, 4), ["SumPool", "Pointwise"]),
    "of the grid alone": (
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 5, 4), ["SumPool", "Pointwise"],
    ),
    "average ceil": (nn.AvgPool2d(2, ceil_mode=True), (2, 5, 4), ["SumPool", "Pointwise"]),
    "another divisor": (nn.AvgPool3d(2, divisor_override=3), (1, 4, 2, 2), ["SumPool", "Pointwise"]),
    "average1": (nn.AvgPool1d(3), (2, 7), ["SumPool", "Pointwise"]),
    "average adaptive": (nn.AdaptiveAvgPool2d((None, 1)), (2, 6, 4), ["SumPool", "Pointwise"]),
    "average uneven": (nn.AdaptiveAvgPool2d(2), (2, 5, 4), ["FixedLinear"]),
    "nearest": (nn.Upsample(scale_factor=2), (2, 3, 4), ["Select"]),
    "linear": (nn.Upsample(scale_factor=2, mode="linear"), (2, 3), ["FixedLinear"]),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4), ["FixedLinear"]),
    "trilinear": (nn.Upsample(size=(2, 4, 3), mode="trilinear"), (2, 2, 2, 2), ["FixedLinear"]),
}  # fmt: skip


@pytest.mark.parametrize(("module", "shape", "expected"), POOLS.values(), ids=POOLS.keys())
def test_pooling(module: nn.Module, shape: tuple[int, ...], expected: list[str]) -> None:
    assert kinds(module, shape) == expected


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "1d": (nn.Conv1d(2, 3, 3), (2, 7), ["Convolution"]),
    "2d": (nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), (2, 5, 6), ["Convolution"]),
    "groups": (nn.Conv2d(4, 6, (3, 2), groups=2, dilation=(1, 2)), (4, 5, 6), ["Convolution"]),
    "3d": (nn.Conv3d(1, 2, 2), (1, 4, 4, 5), ["Convolution"]),
    "same": (nn.Conv2d(2, 3, 3, padding="same"), (2, 5, 4), ["Convolution"]),
    "same, even": (nn.Conv2d(2, 3, (3, 2), padding="same"), (2, 5, 4), ["Select", "Convolution"]),
    "valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 4), ["Convolution"]),
    **{
        mode: (nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), (2, 5, 4), ["Select", "Convolution"])
        for mode in ("circular", "reflect", "replicate")
    },
    "replicate 3d": (
        nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 3, 3, 3), ["Select", "Convolution"],
    ),
    "frozen": (nn.Conv2d(2, 3, 3).requires_grad_(False), (2, 4, 4), ["Convolution"]),
    "by a constant": (
        Function(lambda x: F.conv2d(x, torch.ones(2, 2, 2, 2).double())), (2, 4, 4), ["Convolution"],
    ),
    "frozen weight": (
        nn.Conv2d(2, 3, 2).requires_grad_(False), (2, 3, 3),
        ["Convolution", "Parameter", "Select", "Pointwise"],
    ),
    "transposed": (
        nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), (2, 5, 4),
        ["ConvolutionTransposed", "Parameter", "Select", "Pointwise"],
    ),
    "transposed groups": (
        nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), (4, 3, 3), ["ConvolutionTransposed"],
    ),
    "transposed 1d": (
        nn.ConvTranspose1d(2, 3, 3, dilation=2, bias=False), (2, 4), ["ConvolutionTransposed"],
    ),
    "transposed 3d": (
        nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False), (2, 3, 3, 2), ["ConvolutionTransposed"],
    ),
}  # fmt: skip
CONVOLUTIONS["frozen weight"][0].bias.requires_grad_(True)


@pytest.mark.parametrize(
    ("module", "shape", "expected"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys()
)
def test_convolutions(module: nn.Module, shape: tuple[int, ...], expected: list[str]) -> None:
    assert kinds(module, shape) == expected


def last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def by_itself(x: Tensor) -> Tensor:
    values, where = F.max_pool2d(x, 2, return_indices=True)
    return values * where


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str, str]] = {
    "channels last": (last(nn.Conv2d(2, 3, 3)), (2, 4, 4), "channels last", "contiguous_format"),
    "no channels": (nn.Conv1d(4, 3, 3), (5,), "fixes the batch size", "batch dimension"),
    "uneven maxima": (
        nn.Sequential(nn.Linear(4, 4), nn.AdaptiveMaxPool2d(2)), (2, 5, 4),
        "windows differ in size", "divides",
    ),
    "indices": (
        nn.Sequential(nn.Linear(4, 4), Function(by_itself)), (2, 4, 4),
        "whole numbers", "use the maxima alone",
    ),
    "output padding": (
        nn.ConvTranspose1d(2, 3, 3, dilation=2, output_padding=1), (2, 4), "output_padding", "pad",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("module", "shape", "found", "instead"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    module: nn.Module, shape: tuple[int, ...], found: str, instead: str
) -> None:
    with pytest.raises(TraceError) as error:
        trace(module, torch.randn(4, *shape))
    assert found in str(error.value)
    assert instead in str(error.value)
