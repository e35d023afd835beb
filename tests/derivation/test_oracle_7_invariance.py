"""Oracle 7: factors are symmetric and PSD, and do not depend on names or on the order of evaluation."""

from __future__ import annotations

import copy
from collections import OrderedDict

import oracles
import pytest
import torch
from architectures import SMALL, Forked, networks, normal
from comparison import assert_close, assert_inputs, assert_outputs, rms
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Case, cases
from torch import Tensor, nn

import gncompile

# Rounding of float64 in matrices of up to 65 rows, carried through up to a dozen products.
ROUNDING = 1e-12
# The losses with a probability model, which "kfac" draws targets from.
SAMPLED_LOSSES = ("mse", "bce_with_logits", "cross_entropy", "cross_entropy(soft)")
METHOD_CASES = {
    **{method: cases() for method in ("kfra", "kflr", "kfac_rp", "empirical")},
    "kfac": cases(losses=SAMPLED_LOSSES),
}


def assert_symmetric_psd(matrix: Tensor, what: str) -> None:
    """Symmetric, and no eigenvalue below zero by more than rounding."""
    assert_close(matrix, matrix.T, rtol=ROUNDING, what=f"{what} against its transpose")
    eigenvalues = torch.linalg.eigvalsh(matrix)
    lowest, largest = float(eigenvalues[0]), float(eigenvalues.abs().max())
    assert lowest >= -ROUNDING * largest, f"{what}: eigenvalue {lowest} against {largest}"


@pytest.mark.parametrize("method", METHOD_CASES)
@given(data=st.data())
@settings(max_examples=6)
def test_factors_are_symmetric_and_positive_semidefinite(method: str, data: st.DataObject) -> None:
    model, loss, x, y = data.draw(METHOD_CASES[method]).build()
    for name, factors in gncompile.curvature(model, loss, x, y, method=method).items():
        assert_symmetric_psd(factors.output, f"output factor of {name!r}")
        assert_symmetric_psd(factors.input, f"input factor of {name!r}")


def renamed(module: nn.Module) -> nn.Module:
    """The same network; children of each Sequential get names that sort in the opposite order."""
    if isinstance(module, nn.Sequential):
        children = [renamed(child) for child in module]
        names = [f"part_{len(children) - i:02d}" for i in range(len(children))]
        return nn.Sequential(OrderedDict(zip(names, children, strict=True)))
    if isinstance(module, Forked):
        return Forked(module.join, [renamed(branch) for branch in module.branches])
    return copy.deepcopy(module)


def reordered(module: nn.Module) -> nn.Module:
    """The same network with every fork's branches evaluated last to first."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, Forked):
            part.backwards = True
    return module


@given(case=cases())
@settings(max_examples=8)
def test_kfra_does_not_depend_on_names(case: Case) -> None:
    model, loss, x, y = case.build()
    other = renamed(model)
    names = dict(zip(oracles.linear_layers(model), oracles.linear_layers(other), strict=True))
    expected = gncompile.curvature(model, loss, x, y, method="kfra")
    got = gncompile.curvature(other, loss, x, y, method="kfra")
    assert_outputs(got, {names[k]: f.output for k, f in expected.items()}, rtol=ROUNDING)
    assert_inputs(got, {names[k]: f.input for k, f in expected.items()}, rtol=ROUNDING)


@given(case=cases())
@settings(max_examples=8)
def test_kfra_does_not_depend_on_the_order_of_branches(case: Case) -> None:
    model, loss, x, y = case.build()
    expected = gncompile.curvature(model, loss, x, y, method="kfra")
    got = gncompile.curvature(reordered(model), loss, x, y, method="kfra")
    assert_outputs(got, {k: f.output for k, f in expected.items()}, rtol=ROUNDING)


@given(case=cases(networks(SMALL, depth=2)))
@settings(max_examples=6)
def test_dense_solve_and_logdet_are_those_of_the_kronecker_product(case: Case) -> None:
    model, loss, x, y = case.build()
    generator = torch.Generator().manual_seed(case.seed)
    damping = 0.1
    for name, factors in gncompile.curvature(model, loss, x, y, method="kfra").items():
        dense = torch.kron(factors.output, factors.input)
        assert_close(factors.dense(), dense, what=f"dense block of {name!r}")
        damped = dense + damping * torch.eye(len(dense), dtype=dense.dtype)
        v = normal(generator, len(factors.output), len(factors.input))
        expected = torch.linalg.solve(damped, v.flatten()).reshape(v.shape)
        assert_close(factors.solve(v, damping), expected, what=f"solve of {name!r}")
        logdet = torch.as_tensor(factors.logdet(damping)).double().reshape(())
        assert_close(logdet, torch.linalg.slogdet(damped)[1], what=f"logdet of {name!r}")


@given(case=cases(networks(SMALL, depth=2)))
@settings(max_examples=3)
def test_single_precision_on_request(case: Case) -> None:
    model, loss, x, y = case.build()
    expected = gncompile.curvature(model, loss, x, y, method="kfra")
    got = gncompile.curvature(model, loss, x, y, method="kfra", dtype=torch.float32)
    for name, factors in got.items():
        assert factors.output.dtype == factors.input.dtype == torch.float32
        # Twenty products of numbers with 24 bits; matrices far below unit scale are all cancellation.
        error = rms(factors.output.double() - expected[name].output)
        assert error <= 1e-4 * max(rms(expected[name].output), 1e-2), name
