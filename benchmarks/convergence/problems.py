"""The problems, one declaration each: network, loss, data, batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from gncompile.app.comparison.task import Task
from gncompile.data import DataSpec, DataSplit, load
from gncompile.losses import Loss, define_loss

from ..problems import WIDTHS, autoencoder, summed_bce
from .faces import SIDE, faces, olivetti
from .networks import (
    Build,
    RowTransformer,
    gated_mlp,
    lenet,
    mlp,
    residual_mlp,
    seeded,
    sine_network,
)

TorchLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """``loss`` as gncompile takes it, ``torch_loss`` the same by torch; ``batch_size`` 0: the full batch."""

    name: str
    about: str
    data: Callable[[], DataSplit]
    build: Build
    loss: str | nn.Module | Loss
    torch_loss: TorchLoss
    batch_size: int

    def task(self, samples: int | None = None) -> Task:
        """What the optimisers are given; with ``samples`` one of another name, on the first few."""
        name, data = self.name, self.data()
        if samples is not None:
            name, data = f"{name}-{samples}", first(data, samples)
        batch = min(self.batch_size or len(data.train_x), len(data.train_x))
        return Task(name, self.build, self.loss, self.torch_loss, data, batch)


def first(data: DataSplit, samples: int) -> DataSplit:
    """The first training and validation samples; a target that is the input stays the same tensor."""
    x, held = data.train_x[:samples], data.validation_x[:samples]
    same = data.train_y is data.train_x
    return replace(
        data,
        train_x=x,
        train_y=x if same else data.train_y[:samples],
        validation_x=held,
        validation_y=held if same else data.validation_y[:samples],
    )


# --- Losses as torch computes them --------------------------------------------------------------------


def half_squares(z: Tensor, y: Tensor) -> Tensor:
    """What ``"mse"`` means: half the squared error, summed over outputs and averaged over samples."""
    return 0.5 * (z - y).square().sum() / z.shape[0]


def parity_mixture(z: Tensor, y: Tensor) -> Tensor:
    """``-log(σ(z₁) p(y|z₂) + σ(-z₁) p(y|z₃))``, two experts for a binary target and a gate between them."""
    sign = 2 * y[:, 0] - 1
    log_sigmoid = nn.functional.logsigmoid
    by_first = log_sigmoid(z[:, 0]) + log_sigmoid(sign * z[:, 1])
    by_second = log_sigmoid(-z[:, 0]) + log_sigmoid(sign * z[:, 2])
    return -torch.logaddexp(by_first, by_second).mean()


FIRST = "-softplus(-z1) - softplus((1 - 2*y1)*z2)"
SECOND = "-softplus(z1) - softplus((1 - 2*y1)*z3)"
MIXTURE = define_loss(
    "parity mixture",
    f"-({SECOND}) - softplus({FIRST} - ({SECOND}))",
    targets=(0, 1),
    negative_curvature="clip",
)


# --- Data ----------------------------------------------------------------------------------------------


@cache
def digits(target: str) -> DataSplit:
    """MNIST with labels, or with the images themselves as targets."""
    return load(DataSpec("mnist", target="input" if target == "input" else "label"))


def parity() -> DataSplit:
    """MNIST, and whether the digit is odd: ``[N, 1]``."""
    data = digits("label")
    odd = [(labels % 2).to(torch.float32)[:, None] for labels in (data.train_y, data.validation_y)]
    return replace(data, train_y=odd[0], validation_y=odd[1])


def lower_halves() -> DataSplit:
    """The upper halves of MNIST's images, and as targets the lower ones: 392 pixels each."""
    data = digits("label")
    train, held = data.train_x, data.validation_x
    half = train.shape[1] // 2
    return DataSplit(
        train[:, :half].contiguous(), train[:, half:].contiguous(),
        held[:, :half].contiguous(), held[:, half:].contiguous(), (14, 28),
    )  # fmt: skip


def one_face() -> DataSplit:
    """Coordinates in [-1, 1]² and intensity of the pixels of one face, all of them for training too."""
    line = (torch.arange(SIDE) + 0.5) * (2 / SIDE) - 1
    x = torch.cartesian_prod(line, line)
    y = olivetti()[0, 0].reshape(-1, 1)
    y = (y - y.mean()) / y.std()
    return DataSplit(x, y, x, y, (2,))


def stiff_curve() -> DataSplit:
    """``sin 3x + ⅓ sin 9x + tanh 15x`` at 200 points of [-1, 1], and between them, in float64."""

    def curve(x: Tensor) -> Tensor:
        return torch.sin(3 * x) + torch.sin(9 * x) / 3 + torch.tanh(15 * x)

    x = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    between = (x[1:] + x[:-1]) / 2
    return DataSplit(x, curve(x), between, curve(between), (1,))


def friedman(samples: int = 20_000, seed: int = 0) -> DataSplit:
    """A table of 10 uniform columns, of which five matter, with noise; Friedman (1991), equation 61.

    ``10 sin(π x₁x₂) + 20 (x₃ - ½)² + 10 x₄ + 5 x₅ + ε`` on [0, 1]¹⁰, ε standard normal; inputs and targets
    are standardised.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, 10, generator=generator)
    noise = torch.randn(samples, generator=generator)
    y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y = y + 10 * x[:, 3] + 5 * x[:, 4] + noise
    y = ((y - y.mean()) / y.std())[:, None]
    x = (x - 0.5) * math.sqrt(12)
    held = samples // 5
    return DataSplit(x[held:], y[held:], x[:held], y[:held], (10,))


# --- The problems -----------------------------------------------------------------------------------------


def _autoencoder(*widths: int) -> Build:
    return seeded(lambda: autoencoder(widths))


PROBLEMS: Mapping[str, Problem] = {
    each.name: each
    for each in (
        Problem(
            "curves",
            "CURVES autoencoder 784-400-200-100-50-25-6-…, tanh, BCE",
            lambda: load(DataSpec("curves")),
            _autoencoder(*WIDTHS["curves"]),
            "bce_with_logits",
            summed_bce,
            1000,
        ),
        Problem(
            "mnist",
            "MNIST autoencoder 784-1000-500-250-30-…, tanh, BCE",
            lambda: digits("input"),
            _autoencoder(*WIDTHS["mnist"]),
            "bce_with_logits",
            summed_bce,
            1000,
        ),
        Problem(
            "faces",
            "FACES autoencoder 625-1000-500-250-30-…, tanh, squared error",
            faces,
            _autoencoder(625, 1000, 500, 250, 30, 250, 500, 1000, 625),
            "mse",
            half_squares,
            1000,
        ),
        Problem(
            "classifier",
            "MNIST classifier 784-400-200-10, ReLU, cross-entropy",
            lambda: digits("label"),
            seeded(lambda: mlp(784, 400, 200, 10, activation=nn.ReLU)),
            "cross_entropy",
            nn.functional.cross_entropy,
            1000,
        ),
        Problem(
            "mixture",
            "odd or even MNIST digit by a mixture of two experts, 784-200-50-3, tanh, coupled loss",
            parity,
            seeded(lambda: mlp(784, 200, 50, 3)),
            MIXTURE,
            parity_mixture,
            1000,
        ),
        Problem(
            "image",
            "a 64×64 face by a sine network 2-128-128-128-1, squared error, full batch",
            one_face,
            seeded(lambda: sine_network(128, 3)),
            "mse",
            half_squares,
            0,
        ),
        Problem(
            "stiff",
            "a curve with a steep step, 1-30-30-1, tanh, squared error, float64, full batch",
            stiff_curve,
            seeded(lambda: mlp(1, 30, 30, 1), torch.float64),
            "mse",
            half_squares,
            0,
        ),
        Problem(
            "residual",
            "MNIST classifier with six residual blocks of width 128, SiLU, cross-entropy",
            lambda: digits("label"),
            seeded(lambda: residual_mlp(784, 128, 6, 10)),
            "cross_entropy",
            nn.functional.cross_entropy,
            1000,
        ),
        Problem(
            "gated",
            "lower halves of MNIST images from upper ones, three gated blocks of width 128, BCE",
            lower_halves,
            seeded(lambda: gated_mlp(392, 128, 256, 3, 392)),
            "bce_with_logits",
            summed_bce,
            1000,
        ),
        Problem(
            "table",
            "Friedman's table of ten columns, 10-128-64-1, tanh, squared error",
            friedman,
            seeded(lambda: mlp(10, 128, 64, 1)),
            "mse",
            half_squares,
            500,
        ),
        Problem(
            "lenet",
            "LeNet-5 on MNIST, ReLU, maxima, cross-entropy",
            lambda: digits("label"),
            seeded(lambda: lenet(10)),
            "cross_entropy",
            nn.functional.cross_entropy,
            250,
        ),
        Problem(
            "transformer",
            "MNIST rows by an encoder of two blocks, width 32, four heads, cross-entropy",
            lambda: digits("label"),
            seeded(lambda: RowTransformer(28, 32, 4, 2, 10)),
            "cross_entropy",
            nn.functional.cross_entropy,
            250,
        ),
    )
}
