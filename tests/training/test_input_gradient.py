"""``∂E/∂x`` against autograd in every kind of network, and a trunk that torch trains below a head."""

from __future__ import annotations

import pytest
import torch
from comparison import assert_close
from torch import Tensor, nn

import gncompile
from gncompile.errors import CompileError, ModelChangedError

EXACT = 1e-12
"""Relative: roundings of a handful of products in float64."""


class Residual(nn.Module):
    """Two inputs, a gate, and a sum that skips the trained layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.last(x + torch.tanh(self.inner(x)) * gate) + x[:, :3]


class Categories(nn.Module):
    """Numbers and categories; of three inputs the last is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(7, 4), nn.Linear(9, 3)

    def forward(self, x: Tensor, number: Tensor, unused: Tensor) -> Tensor:
        return self.last(torch.cat([x, self.table(number)], dim=1))


def frozen_first() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    return net


DRAW = torch.Generator().manual_seed(0)
X = torch.randn(40, 5, generator=DRAW, dtype=torch.float64)
OTHER = torch.randn(40, 5, generator=DRAW, dtype=torch.float64)
GRID = torch.randn(40, 2, 6, 6, generator=DRAW, dtype=torch.float64)
NUMBERS = torch.randint(7, (40,), generator=DRAW)
Y = torch.randn(40, 3, generator=DRAW, dtype=torch.float64)
NETWORKS = {
    "chain": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), (X,)),
    "residual": (Residual, (X, OTHER)),
    "categories": (Categories, (X, NUMBERS, OTHER)),
    "frozen": (frozen_first, (X,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)), (X,)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)
        ),
        (GRID,),
    ),
}  # fmt: skip
LOSSES = {
    "mse": ("mse", lambda z, y: 0.5 * (z - y).square().sum(dim=1).mean()),
    "mean": (nn.MSELoss(), nn.MSELoss()),
    "sum": (nn.HuberLoss(reduction="sum"), nn.HuberLoss(reduction="sum")),
}


@pytest.mark.parametrize(
    ("name", "loss", "backend"),
    [(name, "mse", "torch") for name in NETWORKS]
    + [("residual", "mean", "reference"), ("chain", "sum", "torch"), ("convolution", "sum", "reference")],
)  # fmt: skip
def test_it_is_what_autograd_finds(name: str, loss: str, backend: str) -> None:
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    model, (declared, function) = make().double(), LOSSES[loss]
    x = inputs if len(inputs) > 1 else inputs[0]
    trainer = gncompile.compile(model, declared, x, backend=backend, l2=0.1)
    trainer.step(x, Y)
    found = trainer.input_gradient(x, Y)
    found = found if len(inputs) > 1 else (found,)
    model.eval()
    leaves = [each.clone().requires_grad_(each.is_floating_point()) for each in inputs]
    real = [leaf for leaf in leaves if leaf.requires_grad]
    wanted = iter(torch.autograd.grad(function(model(*leaves), Y), real, allow_unused=True))
    for leaf, gradient in zip(leaves, found, strict=True):
        if leaf.requires_grad:
            exact = next(wanted)
            exact = torch.zeros_like(leaf) if exact is None else exact
            assert gradient.shape == leaf.shape
            assert_close(gradient, exact, EXACT)
        else:
            assert gradient is None


def test_a_trunk_is_trained_by_torch() -> None:
    """The trunk's gradient is that of the whole network, step after step."""
    torch.manual_seed(0)
    trunk, head = nn.Linear(5, 4).double(), nn.Sequential(nn.Tanh(), nn.Linear(4, 3)).double()
    optimiser = torch.optim.SGD(trunk.parameters(), lr=0.3)
    trainer, losses = gncompile.compile(head, "mse", torch.zeros(1, 4).double()), []
    for _ in range(8):
        optimiser.zero_grad()
        whole = LOSSES["mse"][1](head(trunk(X)), Y)
        exact = torch.autograd.grad(whole, trunk.parameters())
        h = trunk(X)
        gradient = trainer.input_gradient(h, Y)
        losses.append(trainer.step(h, Y).loss)
        h.backward(gradient)
        for parameter, wanted in zip(trunk.parameters(), exact, strict=True):
            assert_close(parameter.grad, wanted, EXACT)
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]


def test_it_follows_the_model_and_changes_nothing() -> None:
    torch.manual_seed(0)
    models = [NETWORKS["chain"][0]().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    asked, other = (gncompile.compile(model, "mse", X) for model in models)
    for _ in range(3):
        asked.input_gradient(X, Y)
        assert asked.step(X, Y).loss == other.step(X, Y).loss
    new = {name: 2 * t.clone() for name, t in models[0].state_dict().items()}
    models[0].load_state_dict(new, assign=True)
    leaf = X.clone().requires_grad_()
    (exact,) = torch.autograd.grad(LOSSES["mse"][1](models[0](leaf), Y), leaf)
    assert_close(asked.input_gradient(X, Y), exact, EXACT)
    models[0][1] = nn.Sigmoid()
    with pytest.raises(ModelChangedError):
        asked.input_gradient(X, Y)


def test_a_part_that_runs_as_it_is_has_none() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.sort(dim=1).values)

    trainer = gncompile.compile(Sorted().double(), "mse", X)
    with pytest.raises(
        CompileError, match=r"frozen part that runs as it is(.|\n)*call it yourself"
    ):
        trainer.input_gradient(X, Y)
