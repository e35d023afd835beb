"""The race of regressions: everybody comes to an easy aim, a short limit ends it, and refusals are told."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("scipy.optimize")

from benchmarks.convergence.networks import mlp, seeded
from benchmarks.regressions import Problem, curve
from benchmarks.solvers import race, shown

X, Y = curve()
EASY = Problem("easy", seeded(lambda: mlp(1, 4, 1), torch.float64), X, Y, limit=0.5)
AIM = 0.2


@pytest.mark.parametrize("name", ["exact", "KFRA", "scipy lm", "scipy trf", "torch LBFGS"])
def test_everybody_comes_to_an_easy_aim(name: str) -> None:
    result = race(EASY, name, seeds=1)
    assert 0 < result.seconds_to(AIM) < 2 * EASY.limit
    assert result.least <= AIM
    assert result.seconds_to(0.0) == math.inf


def test_the_peer_is_told_the_loss_that_its_model_has() -> None:
    pytest.importorskip("torch_levenberg_marquardt")
    for problem in (EASY, replace(EASY, batch=50)):
        result = race(problem, "torch-lm", seeds=1)
        assert (result.refused, result.seconds_to(AIM) < 2 * EASY.limit) == ("", True)


def test_a_limit_ends_it_and_a_refusal_is_told() -> None:
    wide = replace(EASY, build=seeded(lambda: mlp(1, 99, 1), torch.float64))
    results = {
        "exact": race(replace(EASY, limit=0.05), "exact", 1),
        "scipy lm": race(wide, "scipy lm", 1),
    }
    assert "number of residuals" in results["scipy lm"].refused
    assert "—" in shown(results, [AIM, 0.0])
