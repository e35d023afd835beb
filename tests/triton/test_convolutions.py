"""A whole step of a convolutional network in Triton's interpreter, as the reference backend takes it."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn
from triton_steps import QUICK, SEED

import gncompile
from gncompile.program.launches import schedule
from gncompile.program.schedule import Kind
from gncompile.program.step_program import StepProgram
from gncompile.runtime.draws import PhiloxDraws
from gncompile.training.trainer import Trainer
from gncompile.triton_kernels.settings import MatrixSettings

N, K = 9, 2
CONVOLVED = (Kind.CONVOLUTION, Kind.CONVOLUTION_GRADIENT)


def compiled(backend: str, method: str, **options: object) -> tuple[Trainer, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2, groups=2), nn.SiLU(),
        nn.AvgPool2d((1, 2)), nn.Flatten(), nn.Linear(2, K),
    ).double()  # fmt: skip
    x, y = torch.randn(N, 1, 4, 6).double(), torch.rand(N, K).double()
    trainer = gncompile.compile(
        model, "bce_with_logits", x, method, backend=backend, seed=SEED, **QUICK, **options
    )
    if backend == "reference":  # the numbers that the kernels draw
        trainer._executable.memory.draws = PhiloxDraws(SEED, x.device)
    return trainer, x, y


def stepped(trainer: Trainer, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    trainer.step(x, y)
    state = trainer.state_dict()
    return {**state["model"], **state["states"]}


def implicit(program: StepProgram) -> dict[str, dict[str, int]]:
    """Settings for every convolution, so that none is the library's."""
    settings = asdict(MatrixSettings(16, 16, 16))
    return {x.name: settings for x in schedule(program).launches if x.kind in CONVOLVED}


@pytest.mark.parametrize("by_library", [True, False], ids=["library", "implicit"])
@pytest.mark.parametrize("method", ["kfra", "kflr"])
def test_a_step_agrees_with_the_reference(method: str, by_library: bool) -> None:
    reference, x, y = compiled("reference", method)
    chosen = {} if by_library else implicit(reference.program)
    one, _, _ = compiled("triton", method, tune=chosen or "off")
    if not by_library:
        assert len(chosen) > 10
        assert one.variants == chosen
        assert "library_call" not in one.source
    got, expected = stepped(one, x, y), stepped(reference, x, y)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        error = (got[key].double() - value.double()).abs().max() / value.abs().max().clamp(min=1e-6)
        assert float(error) <= 1e-10, f"{key}: {float(error):.1e}"


def test_moments_of_patches_are_of_what_is_in_memory() -> None:
    """Neither patches nor channels at places are stored for them, and both are what a layer's factors are."""
    program = compiled("reference", "kflr")[0].program
    order = schedule(program)
    moments = [k for x in order.launches if x.kind is Kind.PATCH_MOMENT for k in x.kernels]
    assert {k.stores[0] for k in moments} >= {"Q_layer_0", "Q_layer_3", "G_layer_0"}
    assert not [name for name in order.stores if name.startswith("patches_")]
