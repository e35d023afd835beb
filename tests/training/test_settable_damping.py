"""A damping that is set is that of the next step, on every backend, and of what is saved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training import samples

import gncompile
from gncompile.errors import CompileError, GncompileError


def trainer_of(damping: float = 0.1, **options: object) -> gncompile.Trainer:
    torch.manual_seed(0)
    x, y = samples(40)
    net = nn.Sequential(nn.Linear(x.shape[1], 5), nn.Tanh(), nn.Linear(5, y.shape[1])).double()
    return gncompile.compile(net, "mse", x, damping=damping, **options)


@pytest.mark.parametrize(
    "options", [{}, {"backend": "reference"}, {"guarded": True}, {"inverse": "eigen"}], ids=str
)
def test_set_before_the_first_step_it_is_that_of_compile(options: dict[str, object]) -> None:
    set_, given = trainer_of(**options), trainer_of(damping=7.0, **options)
    set_.damping = 7.0
    assert set_.damping == 7.0
    for number in range(4):
        batch = samples(40, seed=number)
        assert set_.step(*batch).loss == given.step(*batch).loss
    assert set_.damping == given.damping


def test_the_next_step_is_shorter_with_a_greater_one_and_what_is_saved_goes_on(
    tmp_path: Path,
) -> None:
    moved = {}
    for factor in (1.0, 100.0):
        trainer = trainer_of()
        for number in range(22):
            trainer.step(*samples(40, seed=number))
        trainer.damping *= factor
        trainer.save(tmp_path / "state")
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.step(*samples(40, seed=50))
        steps = zip(before, trainer.model.parameters(), strict=True)
        moved[factor] = math.sqrt(sum(float((p.detach() - b).square().sum()) for b, p in steps))
        resumed = gncompile.Trainer.resume(tmp_path / "state", trainer_of().model)
        resumed.step(*samples(40, seed=50))
        for number in range(3):
            batch = samples(40, seed=60 + number)
            assert resumed.step(*batch).loss == trainer.step(*batch).loss
    assert moved[100.0] < 0.7 * moved[1.0]


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf, 1e5, "much", True, None])
def test_what_is_no_damping_is_refused(wrong: object) -> None:
    trainer = trainer_of()
    trainer.step(*samples(40))
    before = trainer.damping
    with pytest.raises(CompileError, match="damping.*\n.*a number from 1e-30 to 10000"):
        trainer.damping = wrong
    assert trainer.damping == before
    trainer.damping = np.float32(2.0)
    assert trainer.damping == 2.0


def test_a_first_order_method_has_none() -> None:
    trainer = trainer_of(method="adam", damping=0.1)
    assert trainer.damping is None
    with pytest.raises(GncompileError, match="'adam' has no damping\n.*learning_rate"):
        trainer.damping = 1.0
