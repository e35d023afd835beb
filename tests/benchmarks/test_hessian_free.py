"""The benchmark of conjugate gradients: its table, and what its contestants are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks.hessian_free import contestants, text
from gncompile.app.comparison.optimisers import DEFAULTS, TrainerSteps
from gncompile.app.comparison.running import Budget
from gncompile.app.comparison.store import Point, Run
from gncompile.app.comparison.task import Task
from gncompile.data.data_split import DataSplit


def test_losses_between_evaluations_are_interpolated_in_their_logarithm() -> None:
    points = [Point(0, 0.0, 100.0, 0.0), Point(20, 10.0, 1.0, 0.0)]
    run = Run("curves", "kfra", DEFAULTS, 0, "10s", "done", points=tuple(points))
    cells = text([run], Budget(10, "s")).splitlines()[-1].split()
    # after 10 updates and 1 s, of 20 and 10; nothing is known of 30 and 100 updates
    expected = ["kfra", "10.00", "-", "-", f"{100 * math.exp(-0.1 * math.log(100)):.2f}"]
    assert cells == [
        *expected,
        f"{100 * math.exp(-0.3 * math.log(100)):.2f}",
        "1.00",
        "20",
        "0.500",
    ]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_contestants_are_the_solvers(number: int) -> None:
    found = list(contestants([0.5]))
    x = torch.rand(6, 3)
    data = DataSplit(x, x, x, x, (3,))
    task = Task("small", lambda seed: nn.Linear(3, 3), "mse", nn.MSELoss(), data, 6)
    steps = found[number].start(task, nn.Linear(3, 3), 0, DEFAULTS)
    assert isinstance(steps, TrainerSteps)
    settings = steps.trainer.settings
    assert (settings.solver, settings.share) == (
        ("kronecker", 0.25), ("block_hessian_free", 0.5), ("newton_cg", 0.5),
    )[number]  # fmt: skip
