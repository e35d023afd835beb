"""Networks whose weights act at many places, or are computed: convolutions, norms, a transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

OUTPUTS = 2
TOKENS = 7


class Norms(nn.Module):
    """Linear at three places, LayerNorm over features, GroupNorm over groups of channels."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(3, size)
        self.norm = nn.LayerNorm(size)
        self.group = nn.GroupNorm(2, size)
        self.second = nn.Linear(size, 5)
        self.out = nn.Linear(15, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        x = self.group(x.transpose(1, 2)).transpose(1, 2)
        return self.out(torch.tanh(self.second(x)).flatten(1))


class Block(nn.Module):
    """Tokens' embeddings, attention and an MLP with LayerNorm before each, and the mean over tokens."""

    def __init__(self, size: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, size)
        self.norm1 = nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.out = nn.Linear(size, OUTPUTS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        n = self.norm1(x)
        x = x + self.attention(n, n, n, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.out(x.mean(1))


def convolutions(channels: int = 3, side: int = 5) -> nn.Sequential:
    """Two convolutions with ReLU and pooling between them; a plane of ``side`` by ``side + 2``."""
    last = ((side // 2) - 1) * ((side + 2) // 2 - 1)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, 2, 2), nn.Flatten(), nn.Linear(2 * last, OUTPUTS),
    )  # fmt: skip


class Computed(nn.Module):
    """A convolution and a linear layer whose weights are computed of parameters, and a plain one."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(1, channels, 3))
        self.linear = parametrizations.weight_norm(nn.Linear(channels * 15, 3))
        self.out = nn.Linear(3, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.linear(torch.tanh(self.conv(x)).flatten(1))))


NETWORKS = {
    "convolutions": convolutions,
    "norms": Norms,
    "block": Block,
    "computed": Computed,
}


def network(name: str, count: int, *sizes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, ``count`` samples and their targets; ``sizes`` of the network, then of a sample."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    model = NETWORKS[name](*sizes)
    if name == "block":
        x = torch.randint(0, TOKENS, (count, 3), generator=generator)
    elif name == "norms":
        x = torch.randn(count, 3, 3, generator=generator)
    else:
        side = sizes[1] if len(sizes) > 1 else 5
        x = torch.randn(count, 1, side, side + 2, generator=generator)
    return model, x, torch.rand(count, OUTPUTS, generator=generator)
