"""Random draws of whole steps in Triton's interpreter: their moments, and what they depend on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build, normal
from torch import Tensor
from torch.nn import functional
from triton_steps import INPUTS, NETWORKS, QUICK, SEED, target, trained, trainer

from gncompile.runtime.draws import PhiloxDraws, TorchDraws
from gncompile.runtime.executable import EmittedStep
from gncompile.training.trainer import Trainer
from gncompile.triton_kernels.launches import run

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda z, y: (z - y).square().sum() / 2,
    "bce_with_logits": lambda z, y: functional.binary_cross_entropy_with_logits(
        z, y, reduction="sum"
    ),
    "index": functional.cross_entropy,
}
ROWS, STEPS = 64, 20


def sampled_gradients(one: Trainer) -> Tensor:
    """``g̃`` of the batch, drawn again at every run of its launch: ``[STEPS, N, K]``."""
    step = one._executable.step
    assert isinstance(step, EmittedStep)
    launches = inspect.getclosurevars(step.phase_functions["curvature"]).nonlocals
    arguments = launches["write_g_sampled"][0].arguments
    (out, *_) = (arguments["out"],) if "out" in arguments else arguments["outputs"]
    step.run("curvature")  # with what the samples are drawn from
    drawn = []
    for _ in range(STEPS):
        run([*launches["write_g_sampled"], *launches["advance_curvature"]])
        drawn.append(out.pointer.clone())
    return torch.stack(drawn)


def assert_zero_mean(samples: Tensor) -> None:
    """Along the first dimension, within 4.5 standard errors; or rounding, where nothing varies."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert bool((samples.mean(0).abs() <= 4.5 * error + 1e-12).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_gradients_have_the_moments_of_the_loss(loss: str) -> None:
    """With targets of the loss's own model ``E[g̃] = 0`` and ``E[g̃ g̃ᵀ]`` is the Hessian of every sample."""
    one = trainer("narrow", loss, "kfac", "triton", torch.float64, factor_share=1)
    generator = torch.Generator().manual_seed(2)
    x, y = normal(generator, ROWS, INPUTS), target(loss, ROWS, generator)
    one.gradients(x, y)
    g = sampled_gradients(one)
    assert_zero_mean(g.flatten(0, 1))
    hessians = torch.func.vmap(torch.func.hessian(LOSSES[loss]))(one.model(x).detach(), y)
    products = torch.einsum("rni,rnj->rnij", g, g)
    assert_zero_mean((products - hessians).flatten(0, 1))
    # The same sample's draws of one step and of the next, and neighbours' draws, have nothing in common.
    assert_zero_mean((g[1:] * g[:-1]).flatten(0, 1))
    assert_zero_mean((g[:, 1:] * g[:, :-1]).flatten(0, 1))


SAMPLED: dict[str, Any] = {"samples": 2, **QUICK}


def test_equal_seeds_give_equal_bits_and_none_of_the_hosts_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        one = trainer("narrow", "index", "kfac", "triton", torch.float64, **SAMPLED)
        one._executable.memory.draws = PhiloxDraws(seed, torch.device("cpu"))
        before = torch.get_rng_state()
        found = trained(one, "index", (9, 5))
        assert torch.equal(before, torch.get_rng_state())
        return found

    monkeypatch.setattr(PhiloxDraws, "fill", None)
    first, second, other = map(run, (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_every_run_of_a_phase_counts_its_draws() -> None:
    one = trainer("narrow", "index", "kfac", "triton", torch.float64, **SAMPLED)
    trained(one, "index", (9, 5, 9))
    # Two draws a step, and one to measure the noise.
    assert one._executable.memory.draws.state_dict()["philox"].tolist() == [SEED, 3 * 2 + 1]


def test_a_resumed_training_draws_on(tmp_path: Path) -> None:
    whole, begun = (
        trainer("narrow", "index", "kfac", "triton", torch.float64, **SAMPLED) for _ in range(2)
    )
    trained(whole, "index", (9, 5))
    trained(begun, "index", (9, 5))
    begun.save(tmp_path / "saved")
    model = build(NETWORKS["narrow"], INPUTS, torch.Generator()).double()
    resumed = Trainer.resume(tmp_path / "saved", model)
    expected, got = (trained(each, "index", (9, 5)) for each in (whole, resumed))
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_other_backends_states_are_taken_with_fresh_draws() -> None:
    """The numbers of one backend have no continuation on another: they start again from the seed."""
    torchs, tritons = (
        trainer("narrow", "index", "kfac", backend, torch.float64, **QUICK)
        for backend in ("torch", "triton")
    )
    for one in (torchs, tritons):
        trained(one, "index", (5,))
    state = {key: {**value} for key, value in tritons.state_dict().items()}
    tritons.load_state_dict(torchs.state_dict())
    assert tritons._executable.memory.draws.state_dict()["philox"].tolist() == [SEED, 0]
    tritons.load_state_dict(state)
    torchs.load_state_dict(state)
    fresh = TorchDraws(SEED, torch.device("cpu")).state_dict()
    assert torch.equal(torchs.state_dict()["generator"]["state"], fresh["state"])
