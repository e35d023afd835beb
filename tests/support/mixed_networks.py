"""Random networks of every kind of node, on features, tokens and grids, and their curvature by brute force.

A network is a chain of parts, each drawn for the shape that arrives: ``[d]``, tokens ``[T, d]``, a line
``[C, H]`` or a grid ``[C, H, W]``. Parts hold weights with several uses (called twice, without the bias, transposed) and
parameters that are vectors. :func:`factors` reads Q and Ḡ off their definition, with Jacobians of
``torch.func`` and patches by plain convolutions with one-hot kernels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from oracles import congruence, output_hessian, per_sample_jacobian
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gncompile.graph.layers import Layer

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


def of_features(draw: random.Random, shape: Shape) -> nn.Module:
    """A part for ``[d]`` or tokens ``[T, d]``."""
    width, out = shape[-1], draw.randint(1, 4)
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


def mixed_network(draw: random.Random, depth: int, outputs: int) -> Mixed:
    """A random network in float64, in training mode but for batch norms, with parameters of size one."""
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
            grow(of_grids(draw, now) if grid and len(now) > 1 else of_features(draw, now))
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


# --- curvature, from its definition -------------------------------------------------------------------


@dataclass
class Use:
    """One call of a module that holds a matrix: its input, the size of its output, and whose matrix it is."""

    layer: str
    module: nn.Module
    call: int
    x: Tensor
    size: torch.Size


def owners(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with a matrix."""
    kinds = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *TRANSPOSED)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def seen(model: nn.Module, x: Tensor) -> list[Use]:
    """Every use of a matrix the right way round, which one of 1 × 1 always is: factors are made of those."""
    names = {module: name for name, module in owners(model).items()}
    found: list[Use] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        owner = module.of[0] if isinstance(module, Used) else module
        if owner is module or not module.transposed or owner.weight.numel() == 1:
            call = sum(use.module is module for use in found)
            found.append(Use(names[owner], module, call, inputs[0].detach(), y.shape))

    watched = [m for m in model.modules() if m in names or isinstance(m, Used)]
    handles = [m.register_forward_hook(note) for m in watched]
    model(x)
    for handle in handles:
        handle.remove()
    return found


@contextmanager
def shifted(use: Use, by: Tensor) -> Iterator[None]:
    """Inside, what one call of a module gives has ``by`` added to it."""
    calls = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return y + by.reshape(use.size) if calls == use.call + 1 else y

    handle = use.module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def patches(conv: nn.Module, grids: Tensor) -> Tensor:
    """What the kernel of a convolution meets, ``[B, groups, T, in/groups · k]``, by one-hot kernels."""
    plain = (F.conv1d, F.conv2d, F.conv3d)[len(conv.kernel_size) - 1]
    padding = conv.padding
    if getattr(conv, "padding_mode", "zeros") != "zeros":
        sides = [side for p in reversed(conv.padding) for side in (p, p)]
        grids, padding = F.pad(grids, sides, mode=conv.padding_mode), 0
    by_group = grids.unflatten(1, (conv.groups, -1)).flatten(0, 1)
    columns = by_group.shape[1] * math.prod(conv.kernel_size)
    one_hot = torch.eye(columns, dtype=grids.dtype).reshape(columns, -1, *conv.kernel_size)
    found = plain(by_group, one_hot, None, conv.stride, padding, conv.dilation)
    return found.flatten(2).mT.unflatten(0, (-1, conv.groups))


def sums(use: Use, columns: Tensor, homogeneous: bool) -> tuple[Tensor, Tensor, int]:
    """``Σ_n Σ_s x̄ x̄ᵀ``, ``Σ_n Σ_s Σ_k c cᵀ`` and S of one use; ``columns: [N, K, *size of the output]``."""
    module, x = use.module, use.x
    if isinstance(module, TRANSPOSED):
        g, rows = module.groups, x.flatten(2)
        q = torch.einsum("nit,njt->ij", rows, rows)
        c = patches(module, columns.flatten(0, 1))
        return within(q, g), torch.einsum("bgti,bgtj->ij", c, c), g * rows.shape[-1]
    if isinstance(module, CONVOLUTIONS):
        rows = patches(module, x)
        c, g = columns.flatten(3), module.groups
        outer = within(torch.einsum("nkit,nkjt->ij", c, c), g)
        places = g * c.shape[-1]
    else:
        rows = one_hot(module, x).to(columns.dtype) if isinstance(module, nn.Embedding) else x
        rows = rows.reshape(len(rows), -1, rows.shape[-1])
        places = rows.shape[1]
        c = columns.flatten(2).unflatten(2, (places, -1))
        outer = torch.einsum("nksi,nksj->ij", c, c)
    if homogeneous:
        coordinate = 0.0 if isinstance(module, Used) else 1.0
        rows = torch.cat([rows, torch.full_like(rows[..., :1], coordinate)], dim=-1)
    rows = rows.flatten(0, -2)
    return rows.mT @ rows, outer, places


def one_hot(module: nn.Embedding, x: Tensor) -> Tensor:
    """Rows that choose; the padding's row of the table is a constant."""
    rows = F.one_hot(x, module.num_embeddings)
    if module.padding_idx is not None:
        rows[..., module.padding_idx] = 0
    return rows


def within(matrix: Tensor, groups: int) -> Tensor:
    """The blocks of channels of one group."""
    group = torch.arange(groups).repeat_interleave(len(matrix) // groups)
    return torch.where(group[:, None] == group, matrix, 0.0)


def factors(
    model: nn.Module, loss: str | nn.Module, x: Tensor, y: Tensor, layers: Mapping[str, Layer]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Q and Ḡ (*expand*) of these layers; whether a bias is a column of W̄ or a vector is as they say."""
    n, top = len(x), output_hessian(loss, model(x), y)
    values, vectors = torch.linalg.eigh(top)
    root = vectors * values.clamp(min=0).sqrt()[:, None]  # 𝓗 = R Rᵀ
    parts: dict[str, list[tuple[Tensor, Tensor, int]]] = {}
    for use in seen(model, x):

        def outputs(e: Tensor, use: Use = use) -> Tensor:
            with shifted(use, e):
                return model(x)  # type: ignore[no-any-return]

        zero = top.new_zeros(n, use.size[1:].numel())
        columns = (root.mT @ per_sample_jacobian(outputs, zero)).unflatten(-1, use.size[1:])
        if use.layer in layers:
            homogeneous = layers[use.layer].homogeneous
            parts.setdefault(use.layer, []).append(sums(use, columns, homogeneous))
    found = {}
    for layer, uses in parts.items():
        q, g, places = (sum(column) for column in zip(*uses, strict=True))
        found[layer] = q / n, g / (n * places)
    vectors = {layer: record.weight for layer, record in layers.items() if record.vector}
    return found | {layer: vector_block(model, name, x, top) for layer, name in vectors.items()}


def vector_block(model: nn.Module, name: str, x: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """``Q = 1`` and the Gauss-Newton block of one parameter."""
    p = model.get_parameter(name)

    def outputs(v: Tensor) -> Tensor:
        return called(model, {name: v.reshape(p.shape)}, x)

    jacobian = jacrev(outputs)(p.detach().flatten())
    return top.new_ones(1, 1), congruence(jacobian, top).mean(dim=0)


def called(model: nn.Module, changed: dict[str, Tensor], x: Tensor) -> Tensor:
    """The output at other parameters; with ``tie_weights`` torch would not restore a module called twice."""
    z: Tensor = functional_call(model, changed, (x,), tie_weights=False)
    return z


def tangent(model: nn.Module, x: Tensor, direction: dict[str, Tensor]) -> Tensor:
    """The derivative of the output along a direction; torch's fused attention has none forwards."""
    at = {name: p.detach() for name, p in model.named_parameters() if name in direction}
    with sdpa_kernel(SDPBackend.MATH):
        r: Tensor = jvp(lambda p: called(model, p, x), (at,), (direction,))[1]
    return r
