"""Averages, undone steps and checkpoints of parameters that are no matrices: kernels, vectors, positions."""

from __future__ import annotations

import pytest
import torch
from comparison import assert_tensors
from torch import Tensor, nn

import gncompile
from gncompile.derivation.averages import BETTER

pytestmark = pytest.mark.filterwarnings("ignore::gncompile.errors.SmallBatchWarning")
BATCH = 12


class Small(nn.Module):
    """A convolution whose W̄ is padded in memory, a norm, and a learned position of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(3, 4, 5, padding=2)  # 75 columns
        self.position = nn.Parameter(torch.randn(1, 4, 6, 6))
        self.norm = nn.LayerNorm(6)
        self.last = nn.Linear(144, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.kernel(x) + self.position))
        return self.last(h.flatten(1))


def trained(steps: int, **options: object) -> tuple[gncompile.Trainer, list[dict[str, Tensor]]]:
    """A trainer after so many steps, and the parameters before each of them."""
    torch.manual_seed(0)
    trainer = gncompile.compile(Small().double(), "mse", batch(0)[0], "kfac", **options)
    before = []
    for step in range(steps):
        before.append(parameters(trainer))
        trainer.step(*batch(step))
    return trainer, before


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, 3, 6, 6, generator=generator).double()
    return x, torch.stack([x.mean((1, 2, 3)), x[:, 0, 0, 0]], dim=1)


def parameters(trainer: gncompile.Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("guarded", [False, True])
def test_the_averages_are_means_in_the_parameters_own_shapes(guarded: bool) -> None:
    trainer, before = trained(11, average=0.5, guarded=guarded)  # a comparison is among them
    mean = {name: torch.zeros_like(value) for name, value in before[0].items()}
    for number, values in enumerate(before, start=1):
        weight = min(1 - 9 / (number + 8), 0.5)
        mean = {name: weight * mean[name] + (1 - weight) * values[name] for name in mean}
    now = parameters(trainer)
    with trainer.averaged_parameters():
        assert_tensors(parameters(trainer), mean, 1e-12)
    assert_tensors(parameters(trainer), now, 0.0)


def test_better_averages_are_reported_and_stored() -> None:
    trainer, _ = trained(3)
    trainer.reported._states[BETTER].fill_(1.0)
    trainer.reported.note()
    state = trainer.state_dict()
    assert {name: t.shape for name, t in state["model"].items()} == {
        name: p.shape for name, p in trainer.model.named_parameters()
    }
    other, _ = trained(1)
    other.load_state_dict(state)
    x, y = batch(9)
    assert other.evaluate(x, y) == trainer.evaluate(x, y)
