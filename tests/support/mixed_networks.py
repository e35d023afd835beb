"""Random networks of every kind of node, on features, tokens and grids.

A network is a chain of parts, each drawn for the shape that arrives: ``[d]``, tokens ``[T, d]``, a line
``[C, H]`` or a grid ``[C, H, W]``. Parts hold weights with several uses (called twice, without the bias,
transposed) and parameters that are vectors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LARGEST = 48
"""Features of a value at most: what is larger is pooled."""


# --- parts that are no module of torch's --------------------------------------------------------------


class Lambda(nn.Module):
    """A function without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str) -> None:
        super().__init__()
        self.function, self.name = function, name

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class Used(nn.Module):
    """Another use of a linear layer: without its bias, or transposed with a bias of its own."""

    def __init__(self, layer: nn.Linear, transposed: bool, shift: bool = False) -> None:
        super().__init__()
        self.of, self.transposed = [layer], transposed  # in a list: no module of this one
        self.shift = nn.Parameter(torch.randn(layer.in_features)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.of[0].weight
        return F.linear(x, weight.t() if self.transposed else weight, self.shift)


class Vector(nn.Module):
    """``x ⊙ p + q``, or a Swish of trained slope; p and q broadcast."""

    def __init__(self, scale: Shape, shift: Shape, swish: bool) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(scale)), nn.Parameter(torch.randn(shift))
        self.swish = swish

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.scale * x) if self.swish else self.scale
        return x * gate + self.shift


class Joined(nn.Module):
    """Branches that are summed, multiplied or concatenated."""

    def __init__(self, join: str, *branches: nn.Module) -> None:
        super().__init__()
        self.join, self.branches = join, nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        values = [branch(x) for branch in self.branches]
        if self.join == "cat":
            return torch.cat(values, dim=1)
        first, *others = values
        for value in others:
            first = first + value if self.join == "sum" else first * value
        return first


class Attention(nn.Module):
    """Self-attention of a few heads, by torch's function or written out."""

    def __init__(self, width: int, heads: int, causal: bool, spelled: bool) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.heads, self.causal, self.spelled = heads, causal, spelled

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (
            part(x).view(n, t, self.heads, d // self.heads).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        if self.spelled:
            scores = q @ k.mT / math.sqrt(d // self.heads)
            if self.causal:
                later = torch.triu(torch.ones(t, t, dtype=torch.bool), 1)
                scores = scores.masked_fill(later, float("-inf"))
            mixed = scores.softmax(dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(n, t, d))


class Outer(nn.Module):
    """``Aᵀ B`` of two linear maps of tokens: ``[d, e]``."""

    def __init__(self, width: int, rows: int, columns: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, rows), nn.Linear(width, columns, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(self.a(x).transpose(1, 2), torch.tanh(self.b(x)))


class Computed(nn.Module):
    """A linear layer whose weight is computed of parameters: ``g v/‖v‖``, or ``W_0 + s B A``."""

    def __init__(self, width: int, out: int, low_rank: bool) -> None:
        super().__init__()
        self.g, self.v = nn.Parameter(torch.rand(out, 1)), nn.Parameter(torch.randn(out, width))
        self.b = nn.Parameter(torch.randn(width, 2)) if low_rank else None

    def forward(self, x: Tensor) -> Tensor:
        if self.b is None:
            return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True))
        return F.linear(x, (self.v @ self.b @ self.b.T + 0.3) * self.g)


class Recurrent(nn.Module):
    """The states of a recurrence at all tokens."""

    def __init__(self, kind: type[nn.RNNBase], width: int, out: int, both_ways: bool) -> None:
        super().__init__()
        self.of = kind(width, out, batch_first=True, bidirectional=both_ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x)[0]


class Token(nn.Module):
    """A learned token in front of the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1)


# --- what is drawn ------------------------------------------------------------------------------------


def act(draw: random.Random) -> nn.Module:
    """A function of one number; two of them have kinks."""
    return draw.choice((nn.Tanh, nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.Softplus, nn.GELU, nn.Mish))()


def linear(draw: random.Random, width: int, out: int) -> nn.Linear:
    return nn.Linear(width, out, bias=draw.random() < 0.6)


def broadcast(draw: random.Random, shape: Shape) -> Shape:
    """A shape that broadcasts to this one, with or without its ones in front."""
    sizes = tuple(size if draw.random() < 0.6 else 1 for size in shape)
    return sizes if draw.random() < 0.5 else (1, *sizes)


def anywhere(draw: random.Random, shape: Shape) -> nn.Module:
    """A part that takes values of any shape and keeps it."""
    kind = draw.choice(
        ("act", "prelu", "vector", "norm", "root mean square", "dropout", "softmax", "gate")
    )
    if kind == "prelu":
        return nn.PReLU(draw.choice((1, shape[0])))
    if kind == "vector":
        return Vector(broadcast(draw, shape), broadcast(draw, shape), draw.random() < 0.3)
    if kind in ("norm", "root mean square"):
        over = shape[draw.randrange(len(shape)) :]
        if math.prod(over) < 3:  # what is left of two features after their mean has one sign only
            return act(draw)
        norm = nn.LayerNorm if kind == "norm" else nn.RMSNorm
        return norm(over, eps=0.1, elementwise_affine=draw.random() < 0.7)
    if kind == "dropout":
        return draw.choice((nn.Dropout(0.4), nn.AlphaDropout(0.3)))
    if kind == "softmax" and max(shape) > 1:  # of one number it is 1
        return nn.Softmax(dim=draw.choice([i + 1 for i, size in enumerate(shape) if size > 1]))
    if kind == "gate":
        return Joined("product", nn.Identity(), act(draw))
    return act(draw)


def of_features(draw: random.Random, shape: Shape, every: bool) -> nn.Module:
    """A part for ``[d]`` or tokens ``[T, d]``; ``every`` kind, or those whose weights are all in layers."""
    width, out = shape[-1], draw.randint(1, 4)
    if every and draw.random() < 0.5:
        if len(shape) == 2:
            kind = draw.choice((nn.RNN, nn.GRU, nn.LSTM))
            return Recurrent(kind, width, out, draw.random() < 0.4)
        return nn.Sequential(Computed(width, out, draw.random() < 0.5), act(draw))
    kinds = ["linear", "twice", "tied", "fork", "any", "any"]
    if len(shape) == 2:
        kinds += ["outer", "token", "turned"]
        if shape[0] > 1:
            kinds.append("attention")
    kind = draw.choice(kinds)
    if kind == "linear":
        return nn.Sequential(linear(draw, width, out), act(draw))
    if kind == "twice":
        again = nn.Linear(width, width)
        second = Used(again, False) if draw.random() < 0.5 else again
        residual = Joined("sum", nn.Identity(), nn.Sequential(act(draw), second))
        return nn.Sequential(again, residual)
    if kind == "tied":
        encoder = linear(draw, width, out)
        return nn.Sequential(encoder, act(draw), Used(encoder, True, draw.random() < 0.5))
    if kind == "fork" and draw.random() < 0.4:
        branches = linear(draw, width, width), anywhere(draw, shape), anywhere(draw, shape)
        return Joined(draw.choice(("sum", "cat", "product")), *branches[: draw.randint(2, 3)])
    if kind == "fork":
        join = draw.choice(("sum", "product", "cat") if len(shape) == 1 else ("sum", "product"))
        return Joined(
            join, linear(draw, width, out), nn.Sequential(linear(draw, width, out), act(draw))
        )
    if kind == "attention":
        heads = draw.choice([h for h in (1, 2, 3) if width % h == 0])
        part = Attention(width, heads, draw.random() < 0.5, draw.random() < 0.5)
        return Joined("sum", nn.Identity(), part)
    if kind == "outer":
        return Outer(width, out, draw.randint(1, 3))
    if kind == "token":
        return Token(width)
    if kind == "turned":
        inner = nn.Sequential(linear(draw, shape[0], out), act(draw))
        return nn.Sequential(turn(), inner, turn())
    return anywhere(draw, shape)


def turn() -> nn.Module:
    """Places as features."""
    return Lambda(lambda x: x.transpose(1, 2), "transpose")


def of_grids(draw: random.Random, shape: Shape) -> nn.Module:
    """A part for ``[C, H]`` or ``[C, H, W]``."""
    channels, dims = shape[0], len(shape) - 1
    kinds = [
        "conv",
        "conv",
        "transposed",
        "pool",
        "norm",
        "twice",
        "dense",
        "squeeze",
        "any",
        "upsample",
        "inception",
    ]
    kind = draw.choice(kinds)
    if kind == "conv":
        return convolution(draw, shape)
    if kind == "transposed":
        groups = draw.choice([g for g in (1, 2) if channels % g == 0])
        stride = draw.randint(1, 2)
        return TRANSPOSED[dims - 1](
            channels, groups * draw.randint(1, 2), draw.randint(1, 3), stride,
            output_padding=draw.randrange(stride), groups=groups, bias=draw.random() < 0.6,
        )  # fmt: skip
    if kind == "pool":
        size = min(draw.randint(1, 3), *shape[1:])
        maximum, average = ((nn.MaxPool1d, nn.AvgPool1d), (nn.MaxPool2d, nn.AvgPool2d))[dims - 1]
        pool = maximum if draw.random() < 0.6 else average
        return pool(
            size,
            draw.randint(1, 2),
            padding=draw.randint(0, size // 2),
            ceil_mode=draw.random() < 0.4,
        )
    if kind == "norm":
        groups = draw.choice([g for g in (1, 2, 3) if channels % g == 0])
        if math.prod(shape) // groups >= 3 and draw.random() < 0.5:
            return nn.GroupNorm(groups, channels, eps=0.1, affine=draw.random() < 0.8)
        if math.prod(shape[1:]) >= 3 and draw.random() < 0.5:
            # nn.InstanceNorm by another name: torch 2.13's own gradient of that is wrong for one sample
            # whose gradient arrives transposed (finite differences tell)
            return nn.GroupNorm(channels, channels, eps=0.1)
        return (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](channels).eval()
    if kind == "twice":
        conv = CONVOLUTIONS[dims - 1](channels, channels, 3, padding=1)
        return nn.Sequential(conv, Joined("sum", nn.Identity(), nn.Sequential(act(draw), conv)))
    if kind == "dense":
        grown = CONVOLUTIONS[dims - 1](channels, draw.randint(1, 2), 3, padding=1)
        return Joined("cat", nn.Identity(), nn.Sequential(grown, act(draw)))
    if kind == "squeeze":
        squeezed = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[dims - 1](1)
        gate = nn.Sequential(squeezed, CONVOLUTIONS[dims - 1](channels, channels, 1), nn.Sigmoid())
        return Joined("product", nn.Identity(), gate)
    if kind == "inception":
        pool = (nn.MaxPool1d, nn.MaxPool2d)[dims - 1](3, 1, padding=1)
        branches = [
            pool,
            anywhere(draw, shape),
            CONVOLUTIONS[dims - 1](channels, channels, 3, padding=1),
        ]
        draw.shuffle(branches)
        return Joined(draw.choice(("sum", "cat", "product")), *branches[: draw.randint(2, 3)])
    if kind == "upsample":
        smooth = ("linear", "bilinear")[dims - 1]
        return nn.Upsample(scale_factor=2, mode=draw.choice(("nearest", smooth)))
    return anywhere(draw, shape)


def convolution(draw: random.Random, shape: Shape) -> nn.Module:
    """A convolution of any stride, padding, dilation and groups that leaves something."""
    channels = shape[0]
    groups = draw.choice([g for g in (1, 2, 3) if channels % g == 0])
    padding, dilation = draw.randint(0, 2), draw.randint(1, 2)
    fits = [(s + 2 * padding - 1) // dilation + 1 for s in shape[1:]]
    kernel = tuple(draw.randint(1, min(3, most)) for most in fits)
    least = min(shape[1:])
    mode = (
        draw.choice(("zeros", "circular", "replicate", "reflect")) if padding < least else "zeros"
    )
    return CONVOLUTIONS[len(kernel) - 1](
        channels, groups * draw.randint(1, 2), kernel, draw.randint(1, 2), padding, dilation, groups,
        bias=draw.random() < 0.6, padding_mode=mode,
    )  # fmt: skip


def bridge(draw: random.Random, shape: Shape, grid: bool) -> tuple[nn.Module, bool]:
    """From tokens or a grid to something else; whether that is a grid."""
    if grid:
        if draw.random() < 0.4:
            return Lambda(lambda x: x.flatten(2).transpose(1, 2), "grid to tokens"), False
        if draw.random() < 0.5:
            return Lambda(lambda x: x.flatten(2).mean(dim=2), "mean over the grid"), False
    elif len(shape) == 2 and draw.random() < 0.5:
        return turn(), True
    return nn.Flatten(), False


@dataclass(frozen=True)
class Mixed:
    """A network with a batch of inputs; ``classes`` where those are whole numbers."""

    model: nn.Module
    shape: Shape
    classes: int

    def inputs(self, samples: int, generator: torch.Generator) -> Tensor:
        if self.classes:
            return torch.randint(self.classes, (samples, *self.shape), generator=generator)
        return torch.randn(samples, *self.shape, generator=generator, dtype=torch.float64)


def mixed_network(draw: random.Random, depth: int, outputs: int, every: bool = False) -> Mixed:
    """A random network in float64, in training mode but for batch norms, with parameters of size one.

    With ``every`` also of recurrences, and of weights that are computed.
    """
    start = draw.choice(("features", "tokens", "line", "grid", "embedding"))
    classes, grid = 0, start in ("line", "grid")
    shape: Shape = {
        "features": (draw.randint(1, 5),),
        "tokens": (draw.randint(1, 4), draw.randint(1, 4)),
        "line": (draw.randint(1, 3), draw.randint(1, 6)),
        "grid": (draw.randint(1, 3), draw.randint(1, 4), draw.randint(1, 4)),
        "embedding": (draw.randint(1, 4),),
    }[start]
    first, parts = shape, list[nn.Module]()
    if start == "embedding":
        classes = draw.randint(2, 5)
        parts.append(nn.Embedding(classes, draw.randint(1, 4), padding_idx=draw.choice((None, 0))))
    value = torch.zeros(2, *shape, dtype=torch.long if classes else torch.float32)

    def grow(part: nn.Module) -> None:
        nonlocal value
        value = part(value)
        parts.append(part)

    if parts:
        value = parts[0](value)
    for _ in range(depth):
        now = tuple(value.shape[1:])
        if math.prod(now) > LARGEST:
            grow(Lambda(lambda x: x.flatten(2).mean(dim=2), "mean over places"))
            grid = False
        elif len(now) > 1 and draw.random() < 0.15:
            part, grid = bridge(draw, now, grid)
            grow(part)
        else:
            grow(of_grids(draw, now) if grid and len(now) > 1 else of_features(draw, now, every))
    if value.dim() > 2:
        grow(nn.Flatten())
    parts.append(nn.Linear(value.shape[1], outputs))
    model = nn.Sequential(*parts).double()
    generator = torch.Generator().manual_seed(draw.randrange(2**16))
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = p[0].numel() ** -0.5 if p.dim() > 1 else 0.7
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * scale)
            if name.endswith("scale") or p.dim() == 1:
                p.add_(0.5)
    return Mixed(model, first, classes)
