"""A convolutional network in Triton's interpreter: whole steps as the reference takes them, and tuning."""

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
from gncompile.triton_kernels.launches import Launch
from gncompile.triton_kernels.library import LibraryCall
from gncompile.triton_kernels.settings import MatrixSettings
from gncompile.tuning.gpu import GpuBench

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


@pytest.mark.parametrize(
    ("method", "by_library"), [("kfra", False), ("kflr", False), ("kflr", True)]
)
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


# --- the tuner ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> GpuBench:
    trainer, x, _ = compiled("reference", "kflr")
    dims = {"N": N, **trainer.settings.rows(N), "S": K}
    return GpuBench(trainer.program, dims, torch.float64, "highest", x.device)


@pytest.mark.parametrize("kind", [*CONVOLVED, Kind.PATCH_MOMENT])
def test_every_candidate_agrees_with_the_reference(bench: GpuBench, kind: Kind) -> None:
    """The default, which of a convolution is the library, and an implicit product."""
    keys = {name: key for name, key in bench.keys.items() if key.kernel == kind}
    problems = bench.problems(keys)
    assert len(problems) > 1
    for one in problems:
        default, *others = one.candidates
        assert any(isinstance(x, LibraryCall) for x in one.launches(default)) == (kind in CONVOLVED)
        assert all(isinstance(each, Launch) for each in one.launches(others[-1]))
        assert one.check(default) is None
        assert one.check(others[-1]) is None
        one.release()


def test_a_key_knows_the_window() -> None:
    """Of windows that come to the same sizes, what was measured for one is not the other's."""
    narrow = nn.Conv1d(1, 2, 2, stride=1), nn.Conv1d(1, 2, 2, stride=2, padding=1)
    keys = []
    for convolution, size in zip(narrow, (5, 7), strict=True):
        model = nn.Sequential(convolution, nn.Flatten(), nn.Linear(8, K))
        one = gncompile.compile(model, "mse", torch.zeros(N, 1, size), backend="reference")
        dims = {"N": N, **one.settings.rows(N), "S": K}
        of = GpuBench(one.program, dims, torch.float32, "highest", torch.device("cpu"))
        keys.append(of.keys["h_layer_0"])
    first, second = keys
    assert first.shape == second.shape
    assert first != second
