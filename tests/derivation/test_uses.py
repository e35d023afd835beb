"""One weight with many uses, at places, called again, tied; trainable vectors. Against torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gncompile
from gncompile.graph import layers


class Tokens(nn.Module):
    """A layer at every position, a learned position, and a token of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 3))
        self.position = nn.Parameter(torch.randn(1, 5, 4))
        self.embed, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1)
        h = torch.tanh(self.embed(x) + self.position)
        return self.out(h)[:, 0] + self.out(h).sum(dim=1)


class Recurrence(nn.Module):
    """A recurrence unrolled: one layer called at every step, without its bias at the last."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.out = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x[:, 0]))
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.again(h) + self.enter(x[:, t]))
        return self.out(h) + self.out(torch.sin(F.linear(h, self.again.weight)))


class FromZeros(nn.Module):
    """A recurrence that begins with a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.state = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h = torch.tanh(self.enter(x[:, t]) + self.state(h))
        return h


class Tied(nn.Module):
    """A decoder that is the encoder transposed, with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 3)
        self.shift = nn.Parameter(0.1 * torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.shift)


class Borrowed(nn.Module):
    """Two modules with one weight and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Vectors(nn.Module):
    """Parameters that are no layer's weight, of every shape, and functions of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(6, 4), nn.Linear(4, 2)
        self.scale, self.power = nn.Parameter(torch.rand(4)), nn.Parameter(torch.tensor(0.3))
        self.each, self.one = nn.PReLU(4), nn.PReLU()
        self.shift = nn.Parameter(torch.randn(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x) * F.softplus(self.scale) + self.shift
        h = self.one(self.each(h))
        return self.out(h * torch.sigmoid(self.power * h)) * self.scale[1:3]


class Parts(nn.Module):
    """Activations that are selected whole by one node, and beside others by another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layer(x))
        return self.out(torch.cat([h.flip(1).sin(), h], 1)) + self.out(torch.cat([h, h.cos()], 1))


class Computed(nn.Module):
    """Weights that are functions of parameters: masked, and scaled, at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
        self.v, self.scale = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.rand(2))
        self.register_buffer("mask", (torch.arange(12) % 3 > 0).reshape(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, self.w * self.mask, self.b))
        return (h @ (self.v * F.softplus(self.scale))).flatten(1)


class FromTheRight(nn.Module):
    """A weight stored as ``[in, out]``."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x @ self.w + self.b))


NETS = {
    "tokens": (Tokens, (4, 3)),
    "recurrence": (Recurrence, (3, 2)),
    "from zeros": (FromZeros, (2, 3)),
    "tied": (Tied, (6,)),
    "borrowed": (Borrowed, (4,)),
    "vectors": (Vectors, (6,)),
    "computed": (Computed, (2, 3)),
    "parts": (Parts, (3,)),
    "from the right": (FromTheRight, (3,)),
}


def made(name: str, samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    kind, shape = NETS[name]
    model = kind().double()
    x = torch.randn(samples, *shape, dtype=torch.float64)
    return model, x, torch.randn_like(model(x))


@pytest.mark.parametrize("name", NETS)
def test_everything_is_what_torch_func_says(name: str) -> None:
    """Gradient, tangents, Q, KFLR's Ḡ, KFRA's Ḡ at N = 1, and the quadratic model."""
    model, x, _ = made(name, 5)
    report = gncompile.verify(model, nn.MSELoss(), x)
    assert report.ok, [check for check in report.checks if not check.ok]


@pytest.mark.parametrize("name", NETS)
def test_steps_learn_and_backends_agree(name: str) -> None:
    losses = []
    for backend in ("torch", "reference"):
        model, x, y = made(name, 7)
        trainer = gncompile.compile(model, nn.MSELoss(), x, backend=backend)
        before = float(trainer.loss(x, y))
        for _ in range(4):
            trainer.step(x, y)
        losses.append(float(trainer.loss(x, y)))
        assert losses[-1] < before
    # rounding grows over four steps; a wrong sum in one backend would differ in the first digits
    assert losses[0] == pytest.approx(losses[1], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", ["vectors", "tokens"])
@pytest.mark.parametrize("method", ["kfra", "kflr", "kfac_rp"])
def test_wide_vectors_keep_the_diagonal_of_their_blocks(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "WIDE", 2)
    losses = []
    for backend in ("torch", "reference"):
        model, x, y = made(name, 7)
        trainer = gncompile.compile(model, nn.MSELoss(), x, method=method, backend=backend)
        if backend == "torch":
            assert gncompile.verify(model, nn.MSELoss(), x).ok
        before = float(trainer.loss(x, y))
        for _ in range(4):
            trainer.step(x, y)
        losses.append(float(trainer.loss(x, y)))
        assert losses[-1] < before
    wide = [
        f for name, f in trainer.factors().items() if f.input.shape == (1, 1) and len(f.output) > 2
    ]
    assert wide
    assert all(torch.equal(f.output, f.output.diagonal().diag()) for f in wide)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6, abs=1e-12)


def test_a_trainable_bias_and_scale_of_what_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().eval()
    model[0].weight.requires_grad_(False)
    report = gncompile.verify(model, nn.MSELoss(), torch.randn(5, 4, dtype=torch.float64))
    assert report.ok
    assert {check.layer for check in report.checks} >= {"0.bias", "1.weight", "1.bias"}
