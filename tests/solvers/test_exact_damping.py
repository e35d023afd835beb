"""The exact solver's damping: several λ on one matrix, and λ in the units of the parameters."""

from __future__ import annotations

import pytest
import torch
from architectures import normal
from exact_problems import EXACT, FORMS, SHARED, assert_same, dense, direction, problems, small
from hypothesis import given, settings
from torch import Tensor, nn

from gncompile.frontends.torch_export import trace
from gncompile.pipeline import prepare


@given(problem=problems())
@settings(max_examples=1)
def test_the_scaled_direction_is_the_dense_solution(
    problem: tuple[nn.Module, str, Tensor, Tensor, object],
) -> None:
    model, loss, x, y, l2 = problem
    expected = dense(model, loss, x, y, 1e-2, l2, scaled=True)
    traced = trace(model, x, passes=prepare)
    for form in FORMS:
        found = direction(traced, loss, x, y, 1e-2, form, l2=l2, damping_scale="diagonal")
        assert_same(found, expected, EXACT, f"{form} of {loss}, l2={l2}, in {model}")


@pytest.mark.parametrize("name", [*SHARED, "dead units", "more parameters", "counts"])
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_scaled(name: str, l2: float) -> None:
    generator = torch.Generator().manual_seed(1)
    if name in SHARED:
        torch.manual_seed(0)
        model, loss = SHARED[name]().double(), "mse"
        x = normal(generator, 4, *((2, 4) if name == "groups" else (3,)))
        x = torch.randint(4, (4, 3), generator=generator) if name == "embedding" else x
        y = normal(generator, 4, model(x).shape[1])
    else:
        model, x, y, loss = small(name)
    expected, traced = dense(model, loss, x, y, 1e-2, l2, True), trace(model, x, passes=prepare)
    for form, backend in (
        ("primal", "torch"),
        ("dual", "torch"),
        ("primal", "reference"),
        ("dual", "reference"),
    ):
        found = direction(traced, loss, x, y, 1e-2, form, backend, l2=l2, damping_scale="diagonal")
        assert_same(found, expected, EXACT, f"{form} {backend}")
