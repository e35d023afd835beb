"""Oracle 1: with one sample nothing is averaged, so KFRA and KFLR are the exact blocks on any DAG."""

from __future__ import annotations

import oracles
import pytest
import torch
from architectures import SMALL, networks, normal
from comparison import assert_inputs, assert_outputs, assert_tensors
from handwritten import NETWORKS, WIDTH, Handwritten
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Case, cases

import gncompile

ONE_SAMPLE = st.just(1)
METHODS = ["kfra", "kflr"]


@given(case=cases(batches=ONE_SAMPLE))
@settings(max_examples=30)
def test_output_factors_are_the_exact_gauss_newton_matrices(case: Case) -> None:
    model, loss, x, y = case.build()
    outputs, inputs = oracles.ggn(model, loss, x, y), oracles.input_moments(model, x)
    for method in METHODS:
        factors = gncompile.curvature(model, loss, x, y, method=method)
        assert_outputs(factors, outputs)
        assert_inputs(factors, inputs)


@pytest.mark.parametrize("method", METHODS)
@given(case=cases(networks(SMALL, depth=2), batches=ONE_SAMPLE))
@settings(max_examples=6)
def test_dense_factors_are_the_exact_blocks_in_parameter_space(method: str, case: Case) -> None:
    model, loss, x, y = case.build()
    factors = gncompile.curvature(model, loss, x, y, method=method)
    dense = {name: f.dense() for name, f in factors.items()}
    assert_tensors(dense, oracles.parameter_ggn(model, loss, x, y), what="dense block")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_hand_written_networks(method: str, network: type[Handwritten], backend: str) -> None:
    generator = torch.Generator().manual_seed(11)
    model = network(generator)
    x = normal(generator, 1, WIDTH)
    y = (normal(generator, *model(x).shape) > 0).double()
    factors = gncompile.curvature(model, "bce_with_logits", x, y, method, backend=backend)
    assert_outputs(factors, oracles.ggn(model, "bce_with_logits", x, y))
