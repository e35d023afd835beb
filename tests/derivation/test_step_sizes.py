"""Step sizes from the quadratic model against a fine search over the allowed coefficients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gncompile.derivation import steps
from gncompile.runtime import linalg


def model(directions: int, seed: int) -> tuple[Tensor, Tensor]:
    """M, positive definite and badly scaled, and b."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(2 * directions, directions, generator=generator, dtype=torch.float64)
    scale = 10.0 ** torch.arange(directions, dtype=torch.float64)
    b = torch.randn(directions, generator=generator, dtype=torch.float64)
    return root.T @ root * scale * scale[:, None] / 20, b * scale


def chosen(
    m: Tensor,
    b: Tensor,
    usual: float = 0.0,
    growth: float | None = None,
    cap: float | None = None,
    most: float | None = None,
) -> dict[str, Tensor]:
    """What :func:`linalg.step_sizes` chooses with a group for every direction but the last, the momentum."""
    rows, columns = torch.triu_indices(len(m), len(m))
    terms = [*m[rows, columns], *b, torch.tensor(usual, dtype=torch.float64)]
    if most is not None:
        terms.append(torch.tensor(most, dtype=torch.float64))
    groups = tuple(range(len(m) - 1))
    out = torch.empty(len(groups) + 4, dtype=torch.float64)
    linalg.step_sizes(terms, groups, True, growth, cap, out)
    count = len(groups)
    return {
        "c": torch.cat([out[:count], out[count + 1 : count + 2]]),
        "length": out[count],
        "predicted": out[count + 2],
        "effective": out[count + 3],
    }


def change(m: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``bᵀc + ½cᵀMc`` for coefficients in rows."""
    return c @ b + (c @ m * c).sum(dim=-1) / 2


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("directions", [2, 3, 6])
def test_the_best_coefficients_with_a_momentum_in_the_unit_interval(
    directions: int, seed: int
) -> None:
    m, b = model(directions, seed)
    found = chosen(m, b)
    # For each momentum on a fine grid the best of the others, by a plain solve.
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    own = slice(0, directions - 1)
    others = -torch.linalg.solve(m[own, own], b[own, None] + m[own, -1:] * grid)
    best = change(m, b, torch.cat([others, grid[None]]).T).min()
    assert 0 <= float(found["c"][-1]) <= 1
    assert float(found["predicted"]) <= float(best) + 1e-9 * abs(float(best))
    assert float(found["predicted"]) == pytest.approx(float(change(m, b, found["c"])), rel=1e-9)
    length = torch.maximum(found["c"] @ m @ found["c"], -b @ found["c"])
    assert float(found["length"]) == pytest.approx(float(length), rel=1e-9)


def test_the_seeds_meet_both_bounds_and_the_inside() -> None:
    momenta = [float(chosen(*model(2, seed))["c"][-1]) for seed in range(16)]
    assert 0.0 in momenta
    assert 1.0 in momenta
    assert any(0 < each < 1 for each in momenta)


def test_a_step_that_grows_too_fast_is_shortened() -> None:
    m, b = model(3, seed=1)
    free = chosen(m, b, usual=0.0, growth=4.0)
    usual = float(free["length"]) / 100
    short = chosen(m, b, usual=usual, growth=4.0)
    assert float(short["length"]) == pytest.approx(4 * usual, rel=1e-12)
    assert float(-b @ short["c"]) <= 4 * usual * (1 + 1e-12)
    torch.testing.assert_close(short["c"], free["c"] / 25, rtol=1e-9, atol=0)
    assert float(short["predicted"]) == pytest.approx(float(change(m, b, short["c"])), rel=1e-9)
    same = chosen(m, b, usual=usual, growth=None)
    assert torch.equal(same["c"], free["c"])
    assert torch.equal(chosen(m, b, usual=100 * usual, growth=4.0)["c"], free["c"])


def test_a_cap_bounds_all_but_the_momentum() -> None:
    for seed in range(8):
        m, b = model(3, seed)
        size = float(chosen(m, b)["c"][:2].abs().max()) / 3
        capped = chosen(m, b, cap=size)["c"]
        assert float(capped[:2].abs().max()) == pytest.approx(size)
        assert 0 <= float(capped[-1]) <= 1


def test_a_step_that_is_not_finite_stays_so() -> None:
    m, b = model(2, seed=0)
    found = chosen(m, b * torch.nan, usual=1.0, growth=4.0)
    assert found["predicted"].isnan()
    assert found["length"].isnan()


def test_without_curvature_there_is_no_step() -> None:
    found = chosen(torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert not found["c"].any()


@pytest.mark.parametrize("directions", [2, 4])
def test_a_momentum_bounded_by_zero_is_none(directions: int) -> None:
    """The step then is that of the other directions alone, to the last bit; a bound of 1 is no other."""
    m, b = model(directions, 5)
    b[-1] = -m[-1, :-1] @ torch.linalg.solve(m[:-1, :-1], -b[:-1]) - m[-1, -1]  # wants a momentum
    assert torch.equal(chosen(m, b, most=1.0)["c"], chosen(m, b)["c"])
    bounded = chosen(m, b, most=0.0)
    assert float(chosen(m, b)["c"][-1]) > 0
    assert float(bounded["c"][-1]) == 0
    groups = tuple(range(directions - 1))
    rows, columns = torch.triu_indices(directions - 1, directions - 1)
    terms = [*m[rows, columns], *b[:-1], torch.zeros((), dtype=torch.float64)]
    alone = torch.empty(len(groups) + 4, dtype=torch.float64)
    linalg.step_sizes(terms, groups, False, None, None, alone)
    assert torch.equal(alone[: directions - 1], bounded["c"][:-1])
    assert float(alone[-2]) == pytest.approx(float(bounded["predicted"]), rel=1e-12)


def test_without_a_slope_there_is_no_step() -> None:
    """A gradient of 0, and no last step: nothing is 0/0."""
    zero = torch.zeros(2, 2, dtype=torch.float64)
    for usual in (0.0, 1e-300):
        found = chosen(zero, zero[0], usual=usual, growth=2.0)
        assert all(not value.any() for value in found.values())


@pytest.mark.parametrize("layers", [1, steps.MOST_APART, steps.MOST_APART + 1, 100])
def test_layers_share_a_step_size_only_where_there_are_many(layers: int) -> None:
    groups = steps._by_layer([0] * layers)
    assert sorted(set(groups)) == list(range(min(layers, steps.MOST_APART)))
    assert list(groups) == sorted(groups)


def test_parts_of_first_order_share_no_step_size_with_others() -> None:
    apart = [0] * 50 + [1] * 3
    groups = steps._by_layer(apart)
    assert not set(groups[:50]) & set(groups[50:])
    assert set(groups) == set(range(max(groups) + 1))
