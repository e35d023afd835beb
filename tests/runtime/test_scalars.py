"""Numbers of a step on the host: what Python would refuse, step sizes, and expressions as lines."""

from __future__ import annotations

import math

import pytest
import sympy
import torch

from gncompile.emit.scalar_source import scalar_lines
from gncompile.functions.expressions import evaluate
from gncompile.functions.primitives import clamp, finite, maximum, select
from gncompile.program import operations as ir
from gncompile.runtime import linalg, reference, scalars

a, b, c = sympy.symbols("a b c", real=True)
VALUES = (0.0, -0.0, 1.5, -2.25, 1e308, math.inf, -math.inf, math.nan)


def same(x: float, y: float) -> bool:
    return x == y or (math.isnan(x) and math.isnan(y))


@pytest.mark.parametrize("name", ["divide", "maximum", "minimum"])
def test_two_numbers_give_what_tensors_give(name: str) -> None:
    ours, theirs = getattr(scalars, name), {"divide": torch.div}.get(name) or getattr(torch, name)
    for x in VALUES:
        for y in VALUES:
            expected = theirs(*(torch.tensor(v, dtype=torch.float64) for v in (x, y))).item()
            assert same(ours(x, y), expected), (x, y)


def test_a_root_is_nan_below_zero() -> None:
    assert scalars.sqrt(2.25) == 1.5
    assert scalars.sqrt(math.inf) == math.inf
    assert math.isnan(scalars.sqrt(-1.0))
    assert math.isnan(scalars.sqrt(math.nan))


@pytest.mark.parametrize(
    "e",
    [
        (a - b) / c,
        select(a * b - c, a / 3, select(b, a, -a)),
        clamp(2 * a, sympy.Float(1e-30), sympy.Integer(10000)),
        select(finite(a) * b, sympy.sqrt(a * a + 1), 1 - finite(c)),
        maximum(select(a / b, a / b, c), 1 - 9 / (a + 8)),
        a**2 + 3 / sympy.sqrt(b**2 + 2) - sympy.Abs(c) * (a + b),
    ],
)
def test_lines_compute_their_expression(e: sympy.Expr) -> None:
    lines = scalar_lines("result", e, {s: s.name for s in (a, b, c)}, lambda i: f"part_{i}")
    for values in ((1.5, -2.25, 0.75), (0.5, 3.0, -1.0), (20000.0, 1.0, 2.0), (-1.0, 0.0, 0.0)):
        found = dict(zip("abc", values, strict=True))
        exec("\n".join(lines), {"scalars": scalars}, found)
        tensors = {s: torch.tensor(found[s.name], dtype=torch.float64) for s in (a, b, c)}
        expected = evaluate(e, tensors).item()
        assert math.isclose(found["result"], expected, rel_tol=1e-14) or same(
            found["result"], expected
        ), (lines, values)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("growth", [None, 4.0])
@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("own", [1, 3, 10])
def test_three_ways_to_the_step_sizes_agree(
    momentum: bool, growth: float | None, cap: float | None, own: int
) -> None:
    generator = torch.Generator().manual_seed(own)
    n, groups = own + momentum, tuple(range(own))
    op = ir.StepSizes(groups, momentum, growth, cap)
    for usual in (0.0, 0.01, 1.0):
        root = torch.randn(n, 2 * n, dtype=torch.float64, generator=generator)
        m, rhs = root @ root.T, torch.randn(n, dtype=torch.float64, generator=generator)
        upper = m[tuple(torch.triu_indices(n, n))]
        terms = torch.cat([upper, rhs, torch.tensor([usual, 0.3][: 1 + momentum]).double()])
        tensors, numbers = torch.empty(2, own + 4, dtype=torch.float64)
        linalg.step_sizes(list(terms), groups, momentum, growth, cap, out=tensors)
        scalars.step_sizes(terms.tolist(), groups, momentum, growth, cap, out=numbers)
        torch.testing.assert_close(numbers, tensors, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(reference.step_sizes(op, terms), tensors, rtol=1e-10, atol=1e-12)
