"""NIST's non-linear regression problems: certified digits of parameters, deviations and residual sums."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from strd import PROBLEMS, Problem

import gncompile

DIGITS = 6
"""Of the certified ten."""

HARD = {
    # A damped first step goes the wrong way, to b1 = 0; Newton's comes back from there.
    ("MGH10", 0): {"damping": 1e-14},
}


def digits(found: Iterable[float], certified: Iterable[float]) -> float:
    """The least ``−log₁₀ |found / certified − 1|``; 10 are known."""
    pairs = zip(found, certified, strict=True)
    return min(10.0, *(-math.log10(max(abs(a / b - 1), 1e-10)) for a, b in pairs))


@pytest.mark.parametrize("start", [0, 1], ids=["start1", "start2"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_certified_digits(problem: Problem, start: int) -> None:
    x, y = problem.data()
    options = HARD.get((problem.name, start), {})
    found = gncompile.fit(problem.model(start), "mse", x, y, ftol=1e-14, xtol=1e-14, **options)
    assert found.success, found.message
    assert found.standard_errors is not None
    got = {
        "parameters": digits(map(float, found.parameters.values()), problem.certified),
        "deviations": digits(map(float, found.standard_errors.values()), problem.deviations),
        "residual sum": digits([2 * found.cost], [problem.residual_sum]),
    }
    assert min(got.values()) >= DIGITS, got
