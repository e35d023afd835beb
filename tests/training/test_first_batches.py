"""Unscaled data bring one warning, with the remedy; what has no scales to speak of brings none."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile.data.curves import curves
from gncompile.errors import UnscaledDataWarning
from gncompile.training.first_batches import unlike

DRAW = torch.Generator().manual_seed(0)
PLAIN = torch.randn(64, 4, generator=DRAW)
WIDE = PLAIN * torch.tensor([0.1, 1.0, 10.0, 1000.0])
FAR = PLAIN + torch.tensor([0.0, 0.0, 2010.0, 0.0])
BITS = (torch.randint(4, (64, 1), generator=DRAW) == torch.arange(4)).float()


def pixels() -> Tensor:
    """Images on a dark ground, brighter in the middle: a few pixels are almost always dark."""
    size = torch.linspace(-3, 3, 40)
    return (torch.rand(256, 40, generator=DRAW) < torch.exp(-(size**2))) * torch.rand(
        256, 40, generator=DRAW
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (WIDE, "column 0 varies by about .*, column 3 by"),
        (WIDE[:16], "differ by orders of magnitude"),
        (WIDE.double(), "differ by orders of magnitude"),
        (FAR, "column 2 of x lies far from 0 .* around 2010"),
        (torch.cat([BITS, 1e-3 * PLAIN, PLAIN], dim=1), "column [4-7] .* column (8|9|10|11)"),
    ],
)
def test_what_is_told(values: Tensor, told: str) -> None:
    found = unlike("x", values, offsets=True)
    assert re.search(told, found), found


@pytest.mark.parametrize(
    "values",
    [
        PLAIN,
        PLAIN * torch.tensor([0.1, 1.0, 1.0, 9.0]),
        1e6 * PLAIN,  # alike, if large
        BITS,
        BITS * torch.tensor([1e-3, 1.0, 1.0, 1e3]),
        torch.cat([PLAIN, torch.full((64, 1), 1e6), torch.zeros(64, 1)], dim=1),
        torch.from_numpy(curves(256, 0, "train")),
        pixels(),
        0.95 + 0.001 * PLAIN,  # bright pixels
        torch.randint(1000, (64, 4)),
        PLAIN[:, :1],
        torch.randn(64, 2, 4) * torch.tensor([1.0, 1.0, 1e3, 1e6]),
    ],
    ids=lambda values: str(list(values.shape)),
)
def test_what_nothing_is_said_of(values: Tensor) -> None:
    assert unlike("x", values, offsets=True) == ""


def told(trainer: gncompile.Trainer, x: object, y: Tensor, steps: int = 2) -> list[str]:
    """The warnings of unscaled data in a few steps."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(steps):
            trainer.step(x, y)
    return [str(each.message) for each in found if each.category is UnscaledDataWarning]


def net(inputs: int = 4, outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs))


def test_once_for_inputs_and_targets_at_the_line_of_the_user() -> None:
    trainer = gncompile.compile(net(), "mse", PLAIN)
    few = WIDE[:8], WIDE[:8, ::3]
    assert told(trainer, *few, steps=1) == []  # which tell no scales yet
    with pytest.warns(
        UnscaledDataWarning, match=r"input 'x'.*\n.*the target.*\n.*standardise=\(x, y\)"
    ) as found:
        trainer.step(WIDE, WIDE[:, ::3])
    assert found[0].filename == __file__
    assert told(trainer, WIDE, WIDE[:, ::3]) == []


def test_a_fit_tells_it_at_its_first_step() -> None:
    trainer = gncompile.compile(net(), "mse", PLAIN)
    with pytest.warns(UnscaledDataWarning, match="standardise=True") as found:
        trainer.fit([(WIDE, PLAIN[:, :2])], updates=3, progress=False)
    assert [w.filename for w in found if w.category is UnscaledDataWarning] == [__file__]


@pytest.mark.parametrize("loss", ["cross_entropy", "poisson_nll"])
def test_targets_of_other_losses_have_no_scales(loss: str) -> None:
    y = WIDE[:, ::3].exp() if loss == "poisson_nll" else WIDE[:, ::3].abs()
    y = (y.clamp(max=900) if loss == "poisson_nll" else y / y.sum(dim=1, keepdim=True)) + 1e-3
    assert told(gncompile.compile(net(), loss, PLAIN), PLAIN, y) == []


class Scaled(nn.Module):
    """A model that scales by itself."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.inner = first, net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scaled(nn.LayerNorm(4)),
        lambda: Scaled(nn.BatchNorm1d(4).eval().requires_grad_(False)),
        lambda: gncompile.Standardised.of(net(), WIDE),
    ],
    ids=["norm", "frozen", "standardised"],
)
def test_a_model_that_scales_by_itself_may_have_any_data(make: Callable[[], nn.Module]) -> None:
    assert told(gncompile.compile(make(), "mse", WIDE), WIDE, PLAIN[:, :2]) == []


def test_of_several_inputs_each_is_looked_at() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = net(), nn.Embedding(64, 2)

        def forward(self, x: Tensor, token: Tensor) -> Tensor:
            return self.a(x) + self.b(token)

    x = WIDE, torch.arange(64)
    found = told(gncompile.compile(Two(), "mse", x), x, PLAIN[:, :2])
    assert len(found) == 1
    assert "input 'x'" in found[0]
    assert "gncompile.Standardised around the part" in found[0]


@pytest.mark.parametrize("scale", [1e200, 1e-200])
@pytest.mark.filterwarnings("error")
def test_numbers_whose_squares_are_none_bring_no_warning_of_numpy(scale: float) -> None:
    unlike("x", scale * torch.randn(40, 3, dtype=torch.float64), offsets=True)
    unlike("x", scale * (20 + torch.rand(40, 3, dtype=torch.float64)), offsets=True)
