"""The race of regressions: everybody comes to an easy aim, a short limit ends it, and refusals are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("scipy.optimize")

from benchmarks.convergence.networks import mlp, seeded
from benchmarks.solvers import Problem, curve, race, shown

X, Y = curve()
EASY = Problem("easy", seeded(lambda: mlp(1, 4, 1), torch.float64), X, Y, 0.2, 20.0)


@pytest.mark.parametrize("name", ["exact", "KFRA", "scipy lm", "scipy trf", "torch LBFGS"])
def test_everybody_comes_to_an_easy_aim(name: str) -> None:
    result = race(EASY, name, seeds=1)
    assert 0 < result.seconds < EASY.limit
    assert result.clocks[0].least <= EASY.aim


def test_a_limit_ends_it_and_a_refusal_is_told() -> None:
    hopeless = replace(EASY, aim=0.0, limit=0.05)
    wide = replace(hopeless, build=seeded(lambda: mlp(1, 99, 1), torch.float64))
    results = {"exact": race(hopeless, "exact", 1), "scipy lm": race(wide, "scipy lm", 1)}
    assert results["exact"].clocks[0].reached is None
    assert "number of residuals" in results["scipy lm"].refused
    assert "—" in shown(results)
