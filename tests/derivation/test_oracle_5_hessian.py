"""Oracle 5: Hessian mode is the exact Hessian, and differs from Gauss-Newton only by curved functions."""

from __future__ import annotations

import oracles
from architectures import PIECEWISE, SMALL, Act, Linear, networks
from comparison import assert_outputs, assert_tensors, difference
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Case, cases

import gncompile


@given(case=cases())
def test_output_factors_are_the_mean_hessian(case: Case) -> None:
    model, loss, x, y = case.build()
    exact = oracles.per_sample_hessian(model, loss, x, y)
    expected = {name: H.mean(dim=0) for name, H in exact.items()}
    assert_outputs(gncompile.curvature(model, loss, x, y, method="hessian"), expected)


@given(case=cases(networks(SMALL, depth=2), batches=st.just(1)))
@settings(max_examples=8)
def test_one_sample_has_the_exact_hessian_block_in_parameter_space(case: Case) -> None:
    model, loss, x, y = case.build()
    factors = gncompile.curvature(model, loss, x, y, method="hessian")
    dense = {name: f.dense() for name, f in factors.items()}
    assert_tensors(dense, oracles.parameter_hessian(model, loss, x, y), what="Hessian block")


@given(case=cases(networks(PIECEWISE)))
@settings(max_examples=8)
def test_piecewise_linear_nets_have_equal_hessian_and_gauss_newton_factors(case: Case) -> None:
    model, loss, x, y = case.build()
    expected = oracles.ggn(model, loss, x, y)
    for method in ("hessian", "kflr"):
        assert_outputs(gncompile.curvature(model, loss, x, y, method=method), expected)


def test_smooth_nets_have_different_hessian_and_gauss_newton_factors() -> None:
    chain = (Linear(4), Act("tanh"), Linear(4), Act("softplus"), Linear(3))
    model, loss, x, y = Case(5, chain, "mse", batch=4, seed=8).build()
    exact = gncompile.curvature(model, loss, x, y, method="hessian")
    approximate = gncompile.curvature(model, loss, x, y, method="kflr")
    for name in ("0", "2"):
        assert difference(approximate[name].output, exact[name].output)[0] > 1e-2, name
    assert difference(approximate["4"].output, exact["4"].output)[0] < 1e-9
