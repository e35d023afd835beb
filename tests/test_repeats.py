"""A batch that is given again: its samples are shuffled, so that all of them shape factors and steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training import assert_same_state, snapshot

import gncompile
from gncompile.errors import BatchError
from gncompile.optimiser.repeats import Repeats
from gncompile.optimiser.settings import Settings
from gncompile.optimiser.trainer import Trainer

COUNT = 32
STEPS = 40
"""All samples are seen in so many with probability 0.9; the draws are fixed."""


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Sample i is the i-th unit vector, so that the diagonal of the input's factor says who was seen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.eye(COUNT, dtype=torch.float64)
    return x, torch.randn(COUNT, 3, generator=generator, dtype=torch.float64)


def made(**options: object) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(COUNT, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    parts = {"factor_samples": 8, "quadratic_samples": 8, "whole_inputs": 0, **options}
    return gncompile.compile(model, "mse", torch.zeros(2, COUNT).double(), **parts)  # type: ignore[arg-type]


def seen(trainer: Trainer) -> int:
    """Samples of ``batch`` that any factor so far was computed on."""
    return int((trainer.state_dict()["states"]["Q.0"].diagonal()[:COUNT] > 0).sum())


@pytest.mark.parametrize("guarded", [False, True])
def test_the_same_batch_shows_all_its_samples(batch: tuple[Tensor, Tensor], guarded: bool) -> None:
    trainer = made(guarded=guarded)
    for _ in range(STEPS):
        trainer.step(*batch)
    assert seen(trainer) == COUNT


def test_other_batches_are_read_as_they_are(batch: tuple[Tensor, Tensor]) -> None:
    """The factors' samples are the last quarter; a copy is another batch."""
    trainer = made()
    for _ in range(STEPS):
        trainer.step(batch[0].clone(), batch[1])
    assert seen(trainer) == COUNT // 4


def test_targets_stay_with_their_samples(batch: tuple[Tensor, Tensor]) -> None:
    """The reported loss is the mean over the samples, whatever their order."""
    trainer = made()
    for _ in range(4):
        expected = float(trainer.loss(*batch))
        loss = trainer.step(*batch).loss
        assert loss == pytest.approx(expected, rel=1e-12)  # two orders of a sum


def test_a_bad_sample_is_named_by_its_place_in_the_batch(batch: tuple[Tensor, Tensor]) -> None:
    trainer = made()
    x, y = batch
    for _ in range(2):
        trainer.step(x, y)
    x[3, 1] = float("nan")
    with pytest.raises(BatchError, match="at sample 3, feature 1"):
        trainer.step(x, y)


def test_resume_goes_on_in_the_same_order(batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    trainer = made()
    for _ in range(3):
        trainer.step(*batch)
    trainer.save(tmp_path / "saved.safetensors")
    resumed = Trainer.resume(tmp_path / "saved.safetensors", made().model)
    for _ in range(2):
        trainer.step(*batch)
        resumed.step(*batch)
    assert_same_state(snapshot(resumed), snapshot(trainer))


@pytest.mark.parametrize(
    "settings",
    [
        Settings(method="adam"),
        Settings(factor_share=1.0, quadratic_share=1.0),
        Settings(factor_samples=COUNT, quadratic_samples=COUNT),
    ],
)
def test_nothing_is_copied_where_all_samples_are_used(settings: Settings) -> None:
    x = torch.eye(COUNT)
    repeats = Repeats(settings)
    for number in range(3):
        repeats.note(x)
        (inputs,), target = repeats.order((x,), x, number)
        assert inputs is x
        assert target is x
