"""Steps with dropout in Triton's interpreter, as the reference backend takes them with the same draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import normal
from torch import Tensor, nn
from triton_steps import SEED

import gncompile
from gncompile.runtime.draws import PhiloxDraws
from gncompile.training.trainer import Trainer


def trainer(backend: str, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 12), nn.Tanh(), nn.Dropout(0.4), nn.Linear(12, 12), nn.Unflatten(1, (3, 4)),
        nn.Dropout1d(0.3), nn.Flatten(), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(12, 2),
    ).double()  # fmt: skip
    example = torch.zeros(1, 5).double()
    one = gncompile.compile(model, "mse", example, backend=backend, seed=SEED, **options)
    if backend == "reference":
        one._executable.memory.draws = PhiloxDraws(SEED, example.device)
    return one


def trained(one: Trainer, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    for count in sizes:
        one.step(normal(generator, count, 5), normal(generator, count, 2))
    state = one.state_dict()
    return {**state["model"], **state["states"], "draws": state["generator"]["philox"]}


@pytest.mark.parametrize("guarded", [False, True])
def test_steps_agree_with_the_reference(guarded: bool) -> None:
    options = {"damping_period": 1, "layer_steps": 1, "guarded": guarded, "trace_correction": False}
    got, expected = (
        trained(trainer(backend, **options), (9, 5)) for backend in ("triton", "reference")
    )
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-9, atol=1e-10, msg=key)
    assert got["draws"].tolist() == [SEED, 2 * 3]  # three masks a step
