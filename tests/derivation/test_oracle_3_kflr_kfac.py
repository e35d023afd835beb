"""Oracle 3: KFLR is the exact average at any batch size, and sampled factors scatter around it."""

from __future__ import annotations

import oracles
import pytest
import torch
from architectures import Act, Fork, Linear
from comparison import assert_outputs, rms, standard_scores
from hypothesis import given
from problems import Case, cases
from torch import Tensor

import gncompile

DRAWS = 3
MANY = 2000
RESIDUAL = Fork("sum", ((), (Linear(4), Act("silu"), Linear(3))))
GATE = Fork("product", ((Linear(3),), (Linear(3), Act("sigmoid"))))
SAMPLED_CHAIN = (Linear(3), Act("tanh"), RESIDUAL, GATE, Linear(3))
SAMPLED_LOSSES = ["mse", "bce_with_logits", "cross_entropy"]


@given(case=cases())
def test_kflr_is_the_exact_average(case: Case) -> None:
    model, loss, x, y = case.build()
    factors = gncompile.curvature(model, loss, x, y, method="kflr")
    assert_outputs(factors, oracles.ggn(model, loss, x, y))


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "bce_with_logits", "poisson"])
@pytest.mark.parametrize("budget", [4_000, 16_000, 64_000])
def test_kflr_in_chunks_is_the_same(loss: str, budget: int) -> None:
    """All columns at once are ``K N d`` = 10·33·16 numbers, 42 kB at each of several tensors."""
    chain = (Linear(16), Act("tanh"), Fork("cat", ((Linear(9),), ())), Linear(10))
    model, argument, x, y = Case(7, chain, loss, batch=33, seed=2).build()
    factors = gncompile.curvature(model, argument, x, y, method="kflr", memory_budget=budget)
    assert_outputs(factors, oracles.ggn(model, argument, x, y))


@given(case=cases())
def test_empirical_factors_are_second_moments_of_the_training_gradients(case: Case) -> None:
    model, loss, x, y = case.build()
    gradients = oracles.output_gradients(model, loss, x, y)
    expected = {name: g.T @ g / len(g) for name, g in gradients.items()}
    assert_outputs(gncompile.curvature(model, loss, x, y, method="empirical"), expected)


@pytest.mark.parametrize("loss", SAMPLED_LOSSES)
@pytest.mark.parametrize("method", ["kfac", "kfac_rp"])
def test_sampled_factors_approach_kflr_within_their_standard_error(method: str, loss: str) -> None:
    """The oracle knows the exact variance of a draw, so the deviations are standard normal.

    Draws are separate for each of many samples of the batch, and few for each: 6000 in all.
    Six standard errors: a chance below 1e-6 for these 100 entries. The root mean square of all scores is
    near one: below 0.1 the method would not sample at all, above 3 its samples would not be separate.
    """
    model, argument, x, y = Case(4, SAMPLED_CHAIN, loss, batch=MANY, seed=3).build()
    factors = gncompile.curvature(model, argument, x, y, method=method, seed=0, samples=DRAWS)
    z = model(x).detach()
    scores = []
    for name, J in oracles.jacobians(model, x).items():
        mean, variance = oracles.sampling_moments(loss, method, J, z)
        scores.append(standard_scores(factors[name].output, mean, variance / DRAWS))
    every = torch.cat(scores)
    assert float(every.abs().max()) < 6.0, (
        f"worst deviation {every.abs().max():.2f} standard errors"
    )
    assert 0.1 < rms(every) < 3.0, f"deviations of {rms(every):.3f} standard errors"


@pytest.mark.parametrize("method", ["kfac", "kfac_rp"])
def test_seeds_repeat_and_differ(method: str) -> None:
    model, loss, x, y = Case(4, SAMPLED_CHAIN, "cross_entropy", batch=6, seed=3).build()

    def outputs(seed: int) -> dict[str, Tensor]:
        factors = gncompile.curvature(model, loss, x, y, method=method, seed=seed)
        return {name: f.output for name, f in factors.items()}

    first, again, other = outputs(1), outputs(1), outputs(2)
    for name in first:
        assert torch.equal(first[name], again[name]), name
        assert not torch.equal(first[name], other[name]), name
