"""The race on differential equations: what it compares, and how it counts."""

from __future__ import annotations

import math

import pytest

from benchmarks.equations import EQUATIONS, Posed
from benchmarks.pde import METHODS, Run, rows_of, run


@pytest.mark.parametrize("name", ["heat_1d/257", "burgers/921"])
def test_residuals_by_hand_are_the_terms(name: str) -> None:
    Posed.of(EQUATIONS[name], seed=1).check()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "DeepXDE L-BFGS"])
def test_a_run_of_no_time_looks_once(method: str) -> None:
    found = run("heat_1d/257", method, 0, 0.0)
    assert len(found.seconds) == len(found.errors) == 1
    assert found.seconds[0] > 0
    assert 0 < found.errors[0] < 10


def test_medians_are_over_seeds() -> None:
    paths = {0: [0.5, 0.005], 1: [0.5, 0.5], 2: [0.0005, 0.00005]}
    runs = [Run("heat_1d/257", "gncompile", s, [1.0, 2.0], errors) for s, errors in paths.items()]
    assert runs[1].reached(1e-2) == math.inf
    row = rows_of(runs)[1]
    assert row[2:7] == ["2 s", "-", "-", "-", "0.005"]
