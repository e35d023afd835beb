"""Whole training steps in Triton's interpreter: states and parameters as the reference backend finds them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from architectures import normal
from torch import Tensor, nn
from triton_steps import (
    CHOICE,
    INPUTS,
    OPTIONS,
    QUICK,
    trained,
    trainer,
)

from gncompile.base.settings import Settings
from gncompile.emit import triton_templates
from gncompile.errors import CompileError


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the largest element of each tensor; buffers begin as NaN, which is within no tolerance."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        error = (got[key].double() - value.double()).abs().max() / value.abs().max().clamp(min=1e-6)
        assert float(error) <= tolerance, f"{key}: {float(error):.1e}"


CASES = [
    ("chain", "bce_with_logits", "kfra", CHOICE),
    ("residual", "mse", "kfra", {**CHOICE, "guarded": True}),
    ("gated", "bce_with_logits", "kfra", {}),
    ("joined", "index", "kfra", {"trace_correction": False}),
    ("gated", "distance", "kflr", {}),
    ("joined", "soft", "kflr", {"guarded": True}),
    ("narrow", "index", "kfac", {}),
    ("residual", "mse", "kfac", {"samples": 2}),
    ("narrow", "bce_with_logits", "kfac", {"guarded": True}),
    ("narrow", "mse", "kfac_rp", {}),
    ("narrow", "soft", "kfac_rp", {}),
    ("narrow", "bce_with_logits", "empirical", {"momentum": False}),
    ("narrow", "distance", "kfra", {"inverse": "eigen"}),
    ("narrow", "log_sum", "kfra", {}),
]


@pytest.mark.parametrize(("network", "loss", "method", "options"), CASES)
def test_steps_agree_with_the_reference(
    network: str, loss: str, method: str, options: dict[str, Any]
) -> None:
    """Sums are taken in another order, by 1e-16 apart; inverses at κ of 0.1 lose a few digits of that."""
    sizes = (17, 17, 5) if CHOICE.items() <= options.items() else (17, 5)
    of = network, loss, method
    got, expected = (
        trained(trainer(*of, backend, torch.float64, **OPTIONS, **options), loss, sizes)
        for backend in ("triton", "reference")
    )
    assert_same(got, expected, 1e-10)


@pytest.mark.parametrize("count", [1, 33])
def test_batches_of_odd_sizes(count: int) -> None:
    got, expected = (
        trained(trainer("chain", "mse", "kfra", backend, torch.float64), "mse", (count,))
        for backend in ("triton", "reference")
    )
    assert_same(got, expected, 1e-10)


@pytest.mark.parametrize("method", ["kfra", "kflr"])
def test_float32(method: str) -> None:
    """One rounding is 6e-8, a sum of 17 a few of them; the inverses multiply that by tr/κ, below 100."""
    of = "chain", "bce_with_logits", method
    got = trained(trainer(*of, "triton", torch.float32), of[1], (17, 17))
    expected = trained(trainer(*of, "reference", torch.float64), of[1], (17, 17))
    assert_same(got, expected, 1e-4)


def test_loss_and_gradient_are_those_of_autograd() -> None:
    one = trainer("residual", "bce_with_logits", "kfra", "triton", torch.float64)
    generator = torch.Generator().manual_seed(6)
    x, y = normal(generator, 17, INPUTS), torch.sigmoid(normal(generator, 17, 3))
    loss = nn.functional.binary_cross_entropy_with_logits(one.model(x), y, reduction="sum") / 17
    loss.backward()
    found = one.gradients(x, y)
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-12)
    assert math.isclose(float(one.loss(x, y)), loss.item(), rel_tol=1e-12)


def test_refined_inverses_train_like_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refinement leaves a residual of 1/16 at most, far less while the factors move slowly."""
    monkeypatch.setattr(
        triton_templates, "RESTART", 14
    )  # enough for a condition of 200, and quicker
    generator = torch.Generator().manual_seed(8)
    x, y = normal(generator, 33, INPUTS), torch.sigmoid(normal(generator, 33, 3))
    losses = {}
    for backend, inverse in (("triton", "newton_schulz"), ("torch", "cholesky")):
        options = {"inverse": inverse, "refresh_always": 3, "refresh_every": 3, **QUICK}
        one = trainer("narrow", "bce_with_logits", "empirical", backend, torch.float64, **options)
        losses[inverse] = [float(one.step(x, y).loss) for _ in range(9)]
    exact = torch.tensor(losses["cholesky"])
    gained = exact[0] - exact.min()
    assert float(gained) > 0.05
    assert float((torch.tensor(losses["newton_schulz"]) - exact).abs().max()) < 0.02 * float(gained)


def test_refined_inverses_need_triton() -> None:
    with pytest.raises(CompileError, match="newton_schulz' with the backend 'torch'"):
        trainer("narrow", "mse", "kfra", "torch", torch.float64, inverse="newton_schulz")
    with pytest.raises(CompileError, match="use inverse='eigen'"):
        Settings.from_options(inverse="newton_schulz", exact_damping=True)
    with pytest.raises(CompileError, match="unknown inverse 'qr'"):
        Settings.from_options(inverse="qr")


def test_a_bad_batch_is_refused() -> None:
    one = trainer("narrow", "mse", "kfra", "triton", torch.float64, guarded=True)
    x, y = torch.zeros(5, INPUTS).double(), torch.zeros(5, 3).double()
    one.step(x + 1, y)
    before = {name: p.clone() for name, p in one.model.state_dict().items()}
    x[2, 3] = math.nan
    one.step(x, y)
    assert one.rejected == 1
    assert all(torch.equal(p, before[name]) for name, p in one.model.state_dict().items())


def test_a_batch_without_a_gradient_changes_nothing() -> None:
    """Inputs and outputs of 0; the states that tell of a step are those of this one."""
    of = {"guarded": True, "inverse": "newton_schulz", **QUICK}
    one = trainer("narrow", "mse", "kfra", "triton", torch.float32, **of)
    generator = torch.Generator().manual_seed(9)
    x, y = normal(generator, 5, INPUTS).float(), normal(generator, 5, 3).float()
    one.step(x, y)
    kinds = ("Q.", "G.", "step.", "average", "damping", "factor_damping", "usual_length", "updates")
    before = {key: value.clone() for key, value in one.state_dict()["states"].items()}
    weights = {name: p.clone() for name, p in one.model.state_dict().items()}
    met = one.predict(x)
    assert one.step(x, met).predicted == one.step(x, met).step_size == 0
    after = one.state_dict()["states"]
    assert all(torch.equal(after[k], before[k]) for k in after if k.startswith(kinds))
    assert all(torch.equal(p, weights[name]) for name, p in one.model.state_dict().items())
    assert all(value.isfinite().all() for value in after.values())
    assert one.rejected == 0
    assert one.step(x, y).loss > float(one.loss(x, y))


@pytest.mark.parametrize(
    ("network", "loss", "options"),
    [
        ("residual", "bce_with_logits", {"solver": "block_hessian_free", "guarded": True}),
        ("chain", "mse", {"solver": "newton_cg", "preconditioner": "kronecker"}),
    ],
)
def test_conjugate_gradients_agree_with_the_reference(
    network: str, loss: str, options: dict[str, Any]
) -> None:
    """Five iterations keep sums that are 1e-16 apart within a few digits of that."""
    given = {**QUICK, "cg_iterations": 5, "curvature_share": 0.5, "l2": 1e-2, **options}
    got, expected = (
        trained(trainer(network, loss, "kfra", backend, torch.float64, **given), loss, (17, 5))
        for backend in ("triton", "reference")
    )
    assert_same(got, expected, 1e-10)
