"""A whole step of a convolutional network in Triton's interpreter, as the reference backend takes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from triton_steps import QUICK, SEED

import gncompile
from gncompile.runtime.draws import PhiloxDraws

N, K = 9, 2


def state_after_a_step(backend: str, method: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2, groups=2),
        nn.AvgPool2d((1, 2)), nn.Flatten(), nn.Linear(2, K),
    ).double()  # fmt: skip
    x, y = torch.randn(N, 1, 4, 6).double(), torch.rand(N, K).double()
    trainer = gncompile.compile(
        model, "bce_with_logits", x, method, backend=backend, seed=SEED, **QUICK
    )
    if backend == "reference":  # the numbers that the kernels draw
        trainer._executable.memory.draws = PhiloxDraws(SEED, x.device)
    trainer.step(x, y)
    state = trainer.state_dict()
    return {**state["model"], **state["states"]}


@pytest.mark.parametrize("method", ["kfra", "kflr"])
def test_a_step_agrees_with_the_reference(method: str) -> None:
    got, expected = (state_after_a_step(backend, method) for backend in ("triton", "reference"))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        error = (got[key].double() - value.double()).abs().max() / value.abs().max().clamp(min=1e-6)
        assert float(error) <= 1e-10, f"{key}: {float(error):.1e}"
