"""Small trainings that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from architectures import normal
from torch import Tensor, nn

import gncompile
from gncompile.data import Batches
from gncompile.training.trainer import Trainer

SAMPLES, WIDTH, OUTPUTS = 50, 6, 3


def plain() -> nn.Module:
    """A chain with a layer without bias."""
    return nn.Sequential(
        nn.Linear(WIDTH, 5),
        nn.Tanh(),
        nn.Linear(5, 4, bias=False),
        nn.SiLU(),
        nn.Linear(4, OUTPUTS),
    )


class Residual(nn.Module):
    """``W₃ (h + tanh(W₂ h))``, ``h = tanh(W₁ x)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(WIDTH, 5), nn.Linear(5, 5)
        self.last = nn.Linear(5, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h + torch.tanh(self.inner(h)))


class Gated(nn.Module):
    """``W₃ (tanh(W₁ x) ⊙ σ(W₂ x))``."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 5)
        self.last = nn.Linear(5, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "residual": Residual,
    "gated": Gated,
}


def network(name: str = "plain", seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """One of :data:`NETWORKS` with seeded weights."""
    torch.manual_seed(seed)
    return NETWORKS[name]().to(dtype)


def samples(
    count: int = SAMPLES, seed: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Inputs and targets in (0, 1) that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    x = normal(generator, count, WIDTH)
    y = torch.sigmoid(2.0 * x @ normal(generator, WIDTH, OUTPUTS))
    return x.to(dtype), y.to(dtype)


UNGATHERED: dict[str, Any] = {"gather_samples": 1, "gather_noise": None}
"""Every batch is a step of its own."""


def compiled(model: nn.Module, method: str = "kfra", **options: Any) -> Trainer:
    """A trainer on the logits' binary cross-entropy; batches are not put together."""
    options = {**UNGATHERED, **options}
    dtype = next(model.parameters()).dtype
    example = torch.zeros(2, WIDTH, dtype=dtype)
    return gncompile.compile(model, "bce_with_logits", example, method, **options)


def poisson(bias: float, count: int, **options: Any) -> tuple[Trainer, Tensor, Tensor]:
    """A Poisson model below its targets: Newton's step is ``y / e^z``, too long. At x = 0 z is the bias."""
    layer = nn.Linear(1, 1).double()
    with torch.no_grad():
        layer.weight.fill_(0.1)
        layer.bias.fill_(bias)
    x, y = torch.zeros(count, 1).double(), torch.full((count, 1), 3.0).double()
    options = {**UNGATHERED, "average": 0.9, **options}
    return gncompile.compile(nn.Sequential(layer), "exp(z) - y*z", x, **options), x, y


def overshooting(**options: Any) -> tuple[Trainer, Tensor, Tensor]:
    """A Poisson model so far below its targets that the loss overflows after the first step.

    That is not judged on its own batch: the next step finds the loss broken.
    """
    return poisson(-7.0, 4, **{"damping": 1e-8, "search_steps": 0, **options})


def batches(size: int = 16, seed: int = 2) -> Batches:
    """The samples in batches, the last of an epoch being partial."""
    return Batches(*samples(), size, seed)


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """A copy of everything a step reads or writes."""
    state = trainer.state_dict()
    return {
        group: {key: v.clone() if isinstance(v, Tensor) else v for key, v in value.items()}
        for group, value in state.items()
    }


def assert_same_state(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bitwise equality of two snapshots, NaN equal to itself."""
    assert got.keys() == expected.keys()
    for group, values in expected.items():
        assert got[group].keys() == values.keys(), group
        for key, value in values.items():
            other = got[group][key]
            if isinstance(value, Tensor):
                same = value.dtype == other.dtype and torch.equal(
                    value.contiguous().reshape(-1).view(torch.uint8),
                    other.contiguous().reshape(-1).view(torch.uint8),
                )
                assert same, f"{group} {key} changed"
            else:
                assert other == value, f"{group} {key}: {value} became {other}"
