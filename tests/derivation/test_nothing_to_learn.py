"""Damping holds where there is nothing to learn from, and training goes on after it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile.base.settings import CURVATURE_METHODS
from gncompile.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::gncompile.errors.SmallBatchWarning")

DTYPES = [torch.float32, torch.float64]
PATHS = [
    *(("torch", method, dtype, False) for method in CURVATURE_METHODS for dtype in DTYPES),
    *(("torch", method, torch.float32, True) for method in ("kfra", "empirical")),
    ("reference", "kfra", torch.float32, False),
]


def data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.sin(x[:, :2]).to(dtype)


def made(
    method: str = "kfra",
    dtype: torch.dtype = torch.float32,
    guarded: bool = False,
    loss: str = "mse",
    **options: object,
) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2)).to(dtype)
    x = torch.zeros(2, 4, dtype=dtype)
    return gncompile.compile(model, loss, x, method, guarded=guarded, **options)  # type: ignore[arg-type]


def state(trainer: Trainer, name: str) -> float:
    return float(trainer.state_dict()["states"][name])


def after(trainer: Trainer, updates: int) -> float:
    """The loss after so many updates on the data; every state is finite then."""
    x, y = data(trainer.dtype)
    for _ in range(updates):
        trainer.step(x, y)
    assert all(value.isfinite().all() for value in trainer.state_dict()["states"].values())
    return float(trainer.loss(x, y))


@pytest.mark.parametrize(("backend", "method", "dtype", "guarded"), PATHS)
def test_targets_that_are_met(backend: str, method: str, dtype: torch.dtype, guarded: bool) -> None:
    """Nothing is kept of steps without a gradient, and a trainer that never took them is no better.

    One whose steps run ahead of the host goes on with the timetable meanwhile, without a search for λ.
    """
    fresh, trainer = (made(method, dtype, guarded, backend=backend) for _ in range(2))
    x, _ = data(dtype)
    met = trainer.predict(x)
    before = trainer.state_dict()["states"]["damping"].clone()
    for _ in range(20 if backend == "reference" else 300):
        stats = trainer.step(x, met).resolved()
    assert (stats.loss, stats.predicted, stats.step_size, stats.rho) == (0, 0, 0, None)
    assert (trainer.rejected, state(trainer, "damping")) == (0, before)
    assert state(trainer, "factor_damping") == pytest.approx(math.sqrt(0.1) / 2)
    if guarded:
        assert after(trainer, 40) < after(fresh, 20)
    else:
        assert after(trainer, 20) == pytest.approx(after(fresh, 20), rel=1e-5)
    assert trainer.rejected == 0


@pytest.mark.parametrize(
    ("backend", "method", "dtype", "guarded"),
    [
        ("torch", "kfra", torch.float32, False),
        ("torch", "empirical", torch.float64, False),
        ("torch", "kflr", torch.float32, True),
        ("reference", "kfac_rp", torch.float64, False),
    ],
)
def test_most_batches_without_a_gradient(
    backend: str, method: str, dtype: torch.dtype, guarded: bool
) -> None:
    """A one-sided loss has no curvature either where it is 0; those batches change nothing."""
    loss = "0.5*maximum(z - y, 0)**2 + 0.5*maximum(y - z - 50, 0)**2"
    trainers = [made(method, dtype, guarded, loss, backend=backend) for _ in range(2)]
    x, y = data(dtype)
    for number in range(40):
        real = number % 5 == 2
        for trainer in trainers if real else trainers[:1]:
            trainer.step(x, y - 2.0 if real else y + 10.0)
    losses = [float(trainer.loss(x, y - 2.0)) for trainer in trainers]
    first = float(made(method, dtype, guarded, loss).loss(x, y - 2.0))
    assert losses[0] < 0.05 * first
    if not guarded:
        assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-9)
    assert trainers[0].rejected == 0


SPELLS: dict[str, Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {
    "tiny": lambda x, met, n: (x * 1e-30, met * 0),
    "single": lambda x, met, n: (x[n % 128][None], met[n % 128][None]),
    "overflow": lambda x, met, n: (x * 1e30, met),
}
"""Batches that nothing, or rounding, can be learned from: inputs and targets of 0, one sample whose target
is met up to rounding, and, in float32, inputs that the factors overflow on."""


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
@pytest.mark.parametrize(
    ("spell", "dtype"),
    [("tiny", DTYPES[0]), ("tiny", DTYPES[1]), ("single", DTYPES[0]), ("overflow", DTYPES[0])],
)
def test_dampings_do_not_run_away(
    spell: str, dtype: torch.dtype, inverse: str, guarded: bool
) -> None:
    trainer = made(dtype=dtype, guarded=guarded, inverse=inverse)
    x, _ = data(dtype)
    met = trainer.predict(x)
    for number in range(120):
        trainer.step(*SPELLS[spell](x, met, number))
    assert state(trainer, "damping") < 2
    assert state(trainer, "factor_damping") < 2
    rejected = trainer.rejected
    assert after(trainer, 60) < 0.05
    assert trainer.rejected - rejected <= 1


@pytest.mark.parametrize("guarded", [False, True])
def test_new_targets_after_a_standstill(guarded: bool) -> None:
    """Steps on targets that were met all but for rounding have no length, which bounds the next no more."""
    trainer = made(guarded=guarded)
    x, _ = data(torch.float32)
    met = trainer.predict(x) + 0.01 * x[:, :2]
    for _ in range(150):
        trainer.step(x, met)
    assert state(trainer, "usual_length") < 1e-6
    assert after(trainer, 80) < 5e-3
    assert state(trainer, "leeway") < 1e6


@pytest.mark.parametrize("guarded", [False, True])
def test_dampings_are_bounded_and_come_back(guarded: bool) -> None:
    trainer = made(guarded=guarded)
    trainer.step(*data(torch.float32))
    for _ in range(200):
        trainer._executable.run("reject")
    assert state(trainer, "damping") == 1e4
    assert state(trainer, "factor_damping") == 50
    after(trainer, 300)
    assert state(trainer, "damping") < 1
    assert state(trainer, "factor_damping") < 1


@pytest.mark.parametrize("guarded", [False, True])
def test_factor_damping_stays_where_every_choice_is_as_good(guarded: bool) -> None:
    """With one sample and one output all directions are multiples of its gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    trainer = gncompile.compile(
        model, "mse", torch.zeros(1, 3).double(), factor_damping_period=2, search_steps=0, damping=10.0,
        guarded=guarded, gather_noise=None,
    )  # fmt: skip
    x = torch.tensor([[1.0, 0.0, 0.0]]).double()
    first = state(trainer, "factor_damping")
    for number in range(12):
        trainer.step(x, torch.full((1, 1), float(number), dtype=torch.float64))
    assert state(trainer, "factor_damping") == first
