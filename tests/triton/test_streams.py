"""Derivatives of a network as outputs, in Triton's interpreter: gradient and factors as the reference's."""

from __future__ import annotations

import pytest
import torch
from comparison import assert_close
from streams import laplacian
from torch import nn

from gncompile.frontends.torch_export import trace
from gncompile.graph.streams import Derivative, differentiated
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program, prepare
from gncompile.runtime.executable import Executable


@pytest.mark.parametrize("method", ["kflr", "kfra"])
def test_gradient_and_factors_of_a_loss_on_streams(method: str) -> None:
    """Sums are taken in another order, 1e-16 of their terms apart."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3), nn.SiLU(), nn.Linear(3, 1))
    x, y = torch.randn(5, 2).double(), torch.randn(5, 3).double()
    traced = differentiated(trace(model.double(), x), [laplacian(2), Derivative.along(0)])
    traced = traced.with_graph(prepare(traced.graph))
    loss = resolve_loss("mse")
    program = factor_program(traced.graph, loss, method)
    place = {"dtype": torch.float64, "device": torch.device("cpu")}
    runs = [Executable(program, traced, loss, backend=b, **place) for b in ("triton", "reference")]
    for each in runs:
        each.load((x,), y)
        each.run(*program.phases)
    for key in program.results:
        found, expected = (each.result(key) for each in runs)
        assert_close(found, expected, 1e-12, key)
