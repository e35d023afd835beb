"""Networks as people write them, in small: gradient against autograd, three steps, prediction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comparison import assert_close, assert_tensors
from torch import Tensor, nn
from torch.nn import functional as F

import gncompile


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# --- images -------------------------------------------------------------------------------------------


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(2, 4, 3), nn.Tanh(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3),
    )  # fmt: skip


def alexnet() -> nn.Module:
    features = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((2, 2)),
    )  # fmt: skip
    head = nn.Sequential(nn.Dropout(), nn.Linear(16, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    return nn.Sequential(features, nn.Flatten(), head)


class Basic(nn.Module):
    """ResNet's basic block, its norm given."""

    def __init__(self, into: int, out: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        self.bn1, self.relu = norm(out), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2, self.downsample = norm(out), None
        if stride > 1 or into != out:
            self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """ResNet's bottleneck."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4 * width, width, 1, bias=False), norm(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), norm(4 * width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def resnet(norm: Callable[[int], nn.Module]) -> nn.Module:
    blocks = Basic(2, 4, 2, norm), Bottleneck(1, norm), Basic(4, 4, 1, norm)
    stem = nn.Conv2d(3, 2, 3, padding=1, bias=False), norm(2), nn.ReLU()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


class InvertedResidual(nn.Module):
    """MobileNet: wide in between, one filter a channel."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, wider, 1, bias=False), nn.GroupNorm(1, wider), nn.ReLU6(),
            nn.Conv2d(wider, wider, 3, padding=1, groups=wider, bias=False), nn.Hardswish(),
            nn.Conv2d(wider, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Dense(nn.Module):
    """DenseNet: every layer sees all before it."""

    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, with what was before beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.low = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.smooth = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.merge, self.last = nn.Conv2d(8, 3, 3, padding=1), nn.Conv2d(5, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.enter(x))
        b = F.relu(self.down(F.max_pool2d(a, 2)))
        c = F.relu(self.low(F.max_pool2d(b, 2)))
        d = F.relu(self.merge(torch.cat([self.smooth(c), b], dim=1)[:, :8]))
        e = F.interpolate(d, scale_factor=2.0, mode="nearest")
        return self.last(torch.cat([self.up(b), e], dim=1))


class SqueezeExcite(nn.Module):
    """Channels weighted by what is seen in all of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(4, 2), nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.conv(x))
        n, c, _, _ = h.size()
        gate = self.excite(F.relu(self.squeeze(h.mean((2, 3)))))
        h = h * torch.sigmoid(gate).view(n, c, 1, 1)
        return self.head(F.adaptive_max_pool2d(h, 1).flatten(1))


def super_resolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2),
        nn.PReLU(4),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )


class ConvNeXt(nn.Module):
    """Depthwise convolution, norm over channels last, a learned scale of the branch."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, stride=2)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(0.5 * torch.ones(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.gamma * self.narrow(F.gelu(self.wide(h)))
        x = x + h.permute(0, 3, 1, 2)
        return self.head(x.mean([-2, -1]))


# --- sequences and sets -------------------------------------------------------------------------------


class ViT(nn.Module):
    """Patches by a convolution, a class token, learned positions, torch's encoder layer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.cls = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, width))
        layer = nn.TransformerEncoderLayer(
            width, 2, 6, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, 1, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        return self.head(self.encoder(x)[:, 0])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    return nn.Sequential(
        nn.Linear(3, 4), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        Lambda(lambda x: x.mean(dim=1)), nn.Linear(4, 3),
    )  # fmt: skip


class Decoder(nn.Module):
    """A language model: embeddings, causal attention, the output tied to the table of the words."""

    mask: Tensor

    def __init__(self, words: int = 6, length: int = 4, width: int = 4) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(words, width), nn.Embedding(length, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 6), nn.GELU(approximate="tanh"), nn.Linear(6, width)
        )
        self.register_buffer("mask", torch.tril(torch.ones(length, length)).bool())
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.word(words) + self.place(torch.arange(words.shape[1]))
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        scores = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~self.mask, float("-inf"))
        x = x + self.mix(F.softmax(scores, dim=-1) @ v)
        x = x + self.mlp(self.norm2(x))
        return self.head(x)[:, -1]


class CrossAttention(nn.Module):
    """A query learned by all samples reads the tokens: torch's module."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 2, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query.expand(x.shape[0], -1, -1)
        mixed, _ = self.attention(query, x, x, need_weights=False)
        return self.head(mixed.flatten(1))


class Mixer(nn.Module):
    """MLP-Mixer: one network over places, one over features."""

    def __init__(self, places: int = 4, width: int = 3) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(places, 5), nn.GELU(), nn.Linear(5, places))
        self.features = nn.Sequential(nn.Linear(width, 5), nn.GELU(), nn.Linear(5, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.features(self.norm2(x))
        return self.head(x.mean(dim=1))


class DeepSets(nn.Module):
    """The same network for each member, a sum, another network."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(2, 4), nn.ELU(), nn.Linear(4, 4))
        self.rho = nn.Sequential(nn.Linear(8, 4), nn.ELU(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.phi(x)
        return self.rho(torch.cat([h.sum(dim=1), F.adaptive_max_pool1d(h.mT, 1)[..., 0]], dim=-1))


class Recurrent(nn.Module):
    """A GRU written out, unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.new = nn.Linear(2 + 3, 2 * 3), nn.Linear(2 + 3, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 3, dtype=x.dtype)
        for step in x.unbind(dim=1):
            r, z = torch.sigmoid(self.gates(torch.cat([step, h], 1))).chunk(2, dim=1)
            h = (1 - z) * torch.tanh(self.new(torch.cat([step, r * h], 1))) + z * h
        return self.head(h)


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, 3, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(3, 6, 2, dilation=2**i) for i in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(3, 3, 1) for _ in range(2))
        self.head = nn.Conv1d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, out = self.enter(x), torch.zeros(())
        for i, (conv, skip) in enumerate(zip(self.dilated, self.skips, strict=True)):
            a, b = conv(F.pad(h, (2**i, 0))).split(3, dim=1)
            gated = torch.tanh(a) * torch.sigmoid(b)
            h, out = h + gated, out + skip(gated)
        return self.head(F.relu(out)).squeeze(1)


# --- features -----------------------------------------------------------------------------------------


class Sine(nn.Module):
    """A layer of SIREN."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(into, out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3.0 * self.linear(x))


class Highway(nn.Module):
    """``t ⊙ h(x) + (1 − t) ⊙ x``."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.gate = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x))
        return t * F.relu(self.plain(x)) + (1 - t) * x


class Gated(nn.Module):
    """GLU and SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid = nn.Linear(4, 8), nn.Linear(4, 8, bias=False)
        self.norm, self.down = nn.RMSNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(F.glu(self.up(x), dim=-1))
        a, b = self.mid(h).chunk(2, -1)
        return self.down(F.silu(a) * b)


class TiedAutoencoder(nn.Module):
    """Two layers down and the same weights, transposed, up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
        self.shift_a, self.shift_b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        code = self.b(torch.tanh(self.a(x)))
        h = torch.tanh(F.linear(code, self.b.weight.t(), self.shift_b))
        return h @ self.a.weight + self.shift_a


class Tabular(nn.Module):
    """Categories beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 2) for n in (3, 5))
        self.net = nn.Sequential(nn.Linear(4 + 2, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        embedded = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        return self.net(torch.cat([numbers, *embedded], dim=1))


def siamese() -> nn.Module:
    """A module that stands in two places."""
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3))


IMAGE, COLOUR, ROW = (1, 4, 4), (3, 6, 6), (4,)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LeNet": (lenet, (1, 8, 8)),
    "AlexNet": (alexnet, (3, 12, 12)),
    "ResNet, group norm": (lambda: resnet(lambda width: nn.GroupNorm(1, width)), COLOUR),
    "ResNet, batch norm": (lambda: resnet(nn.BatchNorm2d).eval(), COLOUR),
    "MobileNet": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 2, 3, stride=2), nn.ReLU6(), InvertedResidual(2, 4), nn.Flatten(),
            nn.Linear(8, 3),
        ),
        COLOUR,
    ),
    "DenseNet": (
        lambda: nn.Sequential(Dense(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 3)),
        IMAGE,
    ),
    "U-Net": (UNet, (1, 8, 8)),
    "squeeze and excite": (SqueezeExcite, (2, 4, 4)),
    "super-resolution": (super_resolution, IMAGE),
    "ConvNeXt": (ConvNeXt, COLOUR),
    "ViT": (ViT, IMAGE),
    "encoder": (encoder, (4, 3)),
    "decoder": (Decoder, (4,)),
    "cross-attention": (CrossAttention, (3, 4)),
    "MLP-Mixer": (Mixer, (4, 3)),
    "DeepSets": (DeepSets, (5, 2)),
    "GRU": (Recurrent, (4, 2)),
    "WaveNet": (WaveNet, (1, 6)),
    "SIREN": (lambda: nn.Sequential(Sine(2, 6), Sine(6, 6), nn.Linear(6, 3)), (2,)),
    "highway": (lambda: nn.Sequential(Highway(), Highway(), nn.Linear(4, 3)), ROW),
    "gated": (Gated, ROW),
    "tied autoencoder": (TiedAutoencoder, ROW),
    "module in two places": (siamese, ROW),
}  # fmt: skip


DEFAULTS = "U-Net", "WaveNet"
"""Compiled as ``compile`` does by itself."""

QUICK = {"method": "kfac_rp", "layer_steps": 0, "search_steps": 0, "average": 0, "momentum": False}
"""A step that is derived in a fraction of the time."""


def inputs_of(name: str, shape: tuple[int, ...]) -> Tensor:
    if name == "decoder":
        return torch.randint(6, (6, *shape))
    return torch.randn(6, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    made, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = made().double(), inputs_of(name, shape)
    trainer = gncompile.compile(model, nn.MSELoss(), x, **({} if name in DEFAULTS else QUICK))
    model.eval()  # of dropout the trainer's answers are without
    with torch.no_grad():
        z = model(x)
    y = torch.randn_like(z)
    assert_close(trainer.predict(x), z, 1e-11, f"output of {name}")
    expected = dict(model.named_parameters())
    slopes = torch.autograd.grad(nn.MSELoss()(model(x), y), list(expected.values()))
    found = trainer.gradients(x, y)
    assert_tensors(found, dict(zip(expected, slopes, strict=True)), 1e-9, f"gradient of {name}")
    before = float(trainer.loss(x, y))
    for _ in range(3):
        trainer.step(x, y)
    assert float(trainer.loss(x, y)) < before
    with torch.no_grad():
        assert float(nn.MSELoss()(model(x), y)) == pytest.approx(
            float(trainer.loss(x, y)), rel=1e-9
        )


def test_a_module_in_two_places_keeps_its_parameters() -> None:
    model = siamese()
    before = dict(model.named_parameters(remove_duplicate=False))
    gncompile.trace(model, torch.zeros(2, 4))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())


class TwoHeads(nn.Module):
    """Classes and a number, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.kind, self.size = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.trunk(x))
        return {"kind": self.kind(h), "size": self.size(h).squeeze(-1)}


def test_two_heads() -> None:
    torch.manual_seed(0)
    model, x = TwoHeads().double(), torch.randn(6, 4).double()
    losses = {"kind": nn.CrossEntropyLoss(), "size": nn.MSELoss()}
    y = {"kind": torch.randint(3, (6,)), "size": torch.randn(6).double()}
    trainer = gncompile.compile(model, losses, x)
    z = model(x)
    value = losses["kind"](z["kind"], y["kind"]) + losses["size"](z["size"], y["size"])
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(value, parameters), strict=True))
    assert_tensors(trainer.gradients(x, y), expected, 1e-9, "gradient")
    predicted = trainer.predict(x)
    for name, value in z.items():
        assert_close(predicted[name], value, 1e-11, name)
    before = float(trainer.loss(x, y))
    for _ in range(3):
        trainer.step(x, y)
    assert float(trainer.loss(x, y)) < before


def test_categories_beside_numbers() -> None:
    torch.manual_seed(0)
    model = Tabular().double()
    categories = torch.stack([torch.randint(n, (6,)) for n in (3, 5)], dim=1)
    x, y = (torch.randn(6, 2).double(), categories), torch.randint(3, (6,))
    trainer = gncompile.compile(model, "cross_entropy", x)
    names, parameters = zip(*model.named_parameters(), strict=True)
    slopes = torch.autograd.grad(F.cross_entropy(model(*x), y), parameters)
    assert_tensors(trainer.gradients(x, y), dict(zip(names, slopes, strict=True)), 1e-9, "gradient")
    before = float(trainer.loss(x, y))
    for _ in range(3):
        trainer.step(x, y)
    assert float(trainer.loss(x, y)) < before
