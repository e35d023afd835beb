"""Oracle 2: where Jacobians do not vary between samples, averaging loses nothing at any batch size."""

from __future__ import annotations

import oracles
import pytest
from architectures import DEEP_LINEAR, SMALL_WIDTHS, networks, one_pointwise_layer
from comparison import assert_outputs, assert_tensors
from hypothesis import given, settings
from problems import SQUARED, Case, cases

import gncompile

SMALL_LINEAR = DEEP_LINEAR.resized(SMALL_WIDTHS)


@given(case=cases(networks(DEEP_LINEAR)))
@settings(max_examples=12)
def test_deep_linear_nets_have_exact_gauss_newton_matrices_under_any_loss(case: Case) -> None:
    model, loss, x, y = case.build()
    exact = oracles.ggn(model, loss, x, y)
    for method in ("kfra", "kflr"):
        assert_outputs(gncompile.curvature(model, loss, x, y, method=method), exact)


@pytest.mark.parametrize("method", ["kfra", "kflr"])
@given(case=cases(networks(SMALL_LINEAR, depth=2), losses=SQUARED))
@settings(max_examples=6)
def test_deep_linear_nets_have_exact_blocks_under_squared_error(method: str, case: Case) -> None:
    """Here the output factor does not depend on the sample, so the Kronecker product is exact too."""
    model, loss, x, y = case.build()
    factors = gncompile.curvature(model, loss, x, y, method=method)
    dense = {name: f.dense() for name, f in factors.items()}
    assert_tensors(dense, oracles.parameter_ggn(model, loss, x, y), what="dense block")


@given(case=cases(one_pointwise_layer(), losses=SQUARED))
@settings(max_examples=30)
def test_one_pointwise_layer_under_squared_error_is_exact(case: Case) -> None:
    """Gates and forks included: one average of products of slopes is all there is."""
    model, loss, x, y = case.build()
    factors = gncompile.curvature(model, loss, x, y, method="kfra")
    assert_outputs(factors, oracles.ggn(model, loss, x, y))
