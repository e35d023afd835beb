"""NIST's non-linear regression problems: certified digits of parameters, deviations and residual sums."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from strd import PROBLEMS, Problem

import gncompile

DIGITS = 6
"""Of the certified ten; the tests of other packages ask for four to six."""


def digits(found: Iterable[float], certified: Iterable[float]) -> float:
    """The least ``−log₁₀ |found / certified − 1|``; 10 are known."""
    pairs = zip(found, certified, strict=True)
    return min(10.0, *(-math.log10(max(abs(a / b - 1), 1e-10)) for a, b in pairs))


@pytest.mark.parametrize("start", [0, 1], ids=["start1", "start2"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_certified_digits(problem: Problem, start: int) -> None:
    x, y = problem.data()
    found = gncompile.fit(problem.model(start), "mse", x, y, ftol=1e-14, xtol=1e-14)
    assert found.success, found.message
    assert found.standard_errors is not None
    got = {
        "parameters": digits(map(float, found.parameters.values()), problem.certified),
        "deviations": digits(map(float, found.standard_errors.values()), problem.deviations),
        "residual sum": digits([2 * found.cost], [problem.residual_sum]),
    }
    assert min(got.values()) >= DIGITS, got
