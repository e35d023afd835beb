"""Networks of the problems; weights are Glorot uniform and biases zero unless a class says otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

Build = Callable[[int], nn.Module]


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> Build:
    """``make`` with weights drawn from a seed, without touching torch's own generator."""

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make()
            for layer in model.modules():
                if isinstance(layer, nn.Linear) and not isinstance(layer, SineLinear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
            return model.to(dtype)

    return build


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Affine layers with an activation between them."""
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        modules += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*modules[:-1])


class SineLinear(nn.Linear):
    """A layer of a sine network, ``ω (W x + b)``; Sitzmann et al. (2020), section 3.2.

    ``W`` is uniform on ``±1/in`` in the first layer and on ``±√(6/in)/ω`` in the others, ``b`` like W.
    """

    def __init__(self, inputs: int, outputs: int, first: bool, frequency: float = 30.0) -> None:
        super().__init__(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / frequency
        # The frequency is a factor of the weights here, so that the layer stays an ordinary affine one.
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound * frequency, bound * frequency)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def sine_network(width: int, hidden: int) -> nn.Sequential:
    """Two coordinates to one intensity by ``hidden`` layers of sines."""
    modules: list[nn.Module] = []
    for number in range(hidden):
        modules += [SineLinear(width if number else 2, width, first=number == 0), Sine()]
    return nn.Sequential(*modules, nn.Linear(width, 1))


class Residual(nn.Module):
    """``h + W₂ silu(W₁ h)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(nn.functional.silu(self.up(h)))


class Gated(nn.Module):
    """``h + W₃ (W₁ h ⊙ σ(W₂ h))``."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(self.value(h) * torch.sigmoid(self.gate(h)))


def residual_mlp(inputs: int, width: int, blocks: int, outputs: int) -> nn.Sequential:
    """An affine layer, residual blocks, and an affine output."""
    body = [Residual(width) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(inputs, width), *body, nn.Linear(width, outputs))


def gated_mlp(inputs: int, width: int, inner: int, blocks: int, outputs: int) -> nn.Sequential:
    """An affine layer, gated blocks, and an affine output."""
    body = [Gated(width, inner) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(inputs, width), *body, nn.Linear(width, outputs))


def lenet(outputs: int) -> nn.Sequential:
    """LeNet-5 on flat 28×28 images, with rectifiers and maxima; LeCun et al. (1998), figure 2."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, outputs),
    )  # fmt: skip


class RowTransformer(nn.Module):
    """An encoder that reads an image row by row: embedding and position, blocks, mean, classes."""

    def __init__(self, size: int, width: int, heads: int, blocks: int, outputs: int) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Linear(size, width)
        self.position = nn.Parameter(0.02 * torch.randn(size, width))
        layers = (
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (self.size, self.size))
        h = self.blocks(self.embedding(rows) + self.position)
        return self.classes(self.norm(h).mean(1))
