"""Whole training steps in Triton's interpreter: states and parameters as the reference backend finds them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from architectures import Act, Chain, Fork, Linear, Scale, Slice, build, calibrate, normal
from torch import Tensor, nn

import gncompile
from gncompile.base.settings import Settings
from gncompile.emit import triton_templates
from gncompile.errors import CompileError
from gncompile.losses import define_loss
from gncompile.runtime.draws import PhiloxDraws
from gncompile.training.trainer import Trainer

TANH = Act("tanh")
NETWORKS: dict[str, Chain] = {
    "chain": (Linear(17), TANH, Linear(33, bias=False), Act("silu"), Linear(3)),
    "residual": (Linear(5), TANH, Fork("sum", ((), (Linear(5), TANH))), Linear(3)),
    "gated": (Fork("product", ((Linear(5), TANH), (Linear(5), Act("sigmoid")))), Linear(3)),
    "joined": (
        Fork("cat", ((Linear(4), TANH), (Linear(1), Act("sin"), Scale()), (Slice(0, 2, 1),))),
        Linear(3),
    ),
    "narrow": (Linear(1), Act("softplus"), Linear(3)),
}
INPUTS = 6
SEED = 5
DISTANCE = "sqrt(1 + (z1 - y1)**2 + (z2 - y2)**2 + (z3 - y3)**2) + exp(z1 - 2*z2)/9"
OPTIONS = {
    "l2": {"*weight": 1e-2, "*": 1e-3},
    "average": 0.9,
    "layer_steps": 1,
    "damping_period": 2,
    "factor_share": 0.5,
    "factor_samples": 2,
    "quadratic_share": 0.5,
    "quadratic_samples": 2,
}
"""Two steps go through both quadratic models and check the damping."""
CHOICE = {"factor_damping_period": 3, "refresh_always": 1, "refresh_every": 2}
"""The third step chooses γ, the second keeps its inverses."""
QUICK = {"layer_steps": 0, "momentum": False, "damping_period": 20}
"""Little besides gradient, factors, inverses and direction."""


def target(loss: str, count: int, generator: torch.Generator) -> Tensor:
    z = normal(generator, count, 3)
    if loss == "index":
        return z.argmax(dim=1)
    if loss == "soft":
        return torch.softmax(z, dim=1)
    return torch.sigmoid(z) if loss == "bce_with_logits" else z


def declared(loss: str) -> Any:
    if loss == "distance":
        return define_loss("distance", DISTANCE)
    return {"index": "cross_entropy", "soft": nn.CrossEntropyLoss()}.get(loss, loss)


def trainer(
    network: str, loss: str, method: str, backend: str, dtype: torch.dtype, **options: Any
) -> Trainer:
    generator = torch.Generator().manual_seed(3)
    model = build(NETWORKS[network], INPUTS, generator)
    calibrate(model, normal(generator, 64, INPUTS))
    example = torch.zeros(2, INPUTS, dtype=dtype)
    compiled = gncompile.compile(
        model.to(dtype), declared(loss), example, method, backend=backend, seed=SEED, **options
    )
    if backend == "reference":
        # The numbers that the kernels are to draw.
        compiled._executable.memory.draws = PhiloxDraws(SEED, example.device)
    return compiled


def trained(one: Trainer, loss: str, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Parameters and states after a step on a batch of each size, and a measurement of noise."""
    generator = torch.Generator().manual_seed(4)
    for count in sizes:
        x, y = normal(generator, count, INPUTS), target(loss, count, generator)
        one.step(x.to(one.dtype), y.to(one.dtype) if y.is_floating_point() else y)
    # Measured here, as it is due after more steps only.
    one._executable.run("gradient", "direction", "gradient_noise")
    state = one.state_dict()
    return {**state["model"], **state["states"]}


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
    ("narrow", "distance", "kfra", {"exact_damping": True}),
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
        losses[inverse] = [float(one.step(x, y).loss) for _ in range(20)]
    exact = torch.tensor(losses["cholesky"])
    gained = exact[0] - exact.min()
    assert float(gained) > 0.05
    assert float((torch.tensor(losses["newton_schulz"]) - exact).abs().max()) < 0.02 * float(gained)


def test_refined_inverses_need_triton() -> None:
    with pytest.raises(CompileError, match="newton_schulz' with the backend 'torch'"):
        trainer("narrow", "mse", "kfra", "torch", torch.float64, inverse="newton_schulz")
    with pytest.raises(CompileError, match="exact_damping together with"):
        Settings(inverse="newton_schulz", exact_damping=True)
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
