"""The order of a batch's rows: each step reads them in another, so that all shape factors and steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training import assert_same_state, snapshot

import gncompile
from gncompile.base.settings import Settings
from gncompile.errors import BatchError
from gncompile.training.order import reading_order
from gncompile.training.trainer import Trainer

COUNT = 32
STEPS = 40
"""All samples are seen in so many with probability 0.9; the draws are fixed."""
CPU = torch.device("cpu")


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Sample i is the i-th unit vector, so that the diagonal of the input's factor says who was seen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.eye(COUNT, dtype=torch.float64)
    return x, torch.randn(COUNT, 3, generator=generator, dtype=torch.float64)


def made(**options: object) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(COUNT, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    parts = {"factor_samples": 8, "quadratic_samples": 8, "whole_inputs": 0, **options}
    return gncompile.compile(model, "mse", torch.zeros(2, COUNT).double(), **parts)  # type: ignore[arg-type]


def seen(trainer: Trainer) -> int:
    """Samples of ``batch`` that any factor so far was computed on."""
    return int((trainer.state_dict()["states"]["Q.0"].diagonal()[:COUNT] > 0).sum())


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_all_rows_of_a_batch_shape_the_factors(
    batch: tuple[Tensor, Tensor], guarded: bool, backend: str
) -> None:
    """Whether it is the same tensor again or a copy."""
    trainer = made(guarded=guarded, backend=backend)
    for step in range(STEPS):
        trainer.step(batch[0].clone() if step % 2 else batch[0], batch[1])
    assert seen(trainer) == COUNT


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_targets_stay_with_their_samples(batch: tuple[Tensor, Tensor], backend: str) -> None:
    """The reported loss is the mean over the samples, whatever their order."""
    trainer = made(backend=backend)
    for _ in range(4):
        expected = float(trainer.loss(*batch))
        loss = trainer.step(*batch).loss
        assert loss == pytest.approx(expected, rel=1e-12)  # two orders of a sum


class Two(nn.Module):
    """A network of two inputs, the first wide enough for its rows to be padded in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(70, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) + self.second(y)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_all_inputs_of_a_sample_stay_together(backend: str) -> None:
    """A summed loss over samples whose error is known: ``Σ_n ½ ‖z_n − y_n‖²`` with one error of n."""
    torch.manual_seed(0)
    model = Two().double()
    x = torch.randn(COUNT, 70).double(), torch.randn(COUNT, 2).double()
    y = model(*x).detach()
    trainer = gncompile.compile(
        model,
        nn.MSELoss(reduction="sum"),
        x,
        backend=backend,
        factor_samples=8,
        quadratic_samples=8,
    )
    assert trainer.step(x, y).loss == pytest.approx(0.0, abs=1e-25)
    y[:, 0] += torch.arange(COUNT)
    assert trainer.step(x, y).loss == pytest.approx(float(torch.arange(COUNT).square().sum()))


def test_a_bad_sample_is_named_by_its_place_in_the_batch(batch: tuple[Tensor, Tensor]) -> None:
    trainer = made()
    x, y = batch
    for _ in range(2):
        trainer.step(x, y)
    x[3, 1] = float("nan")
    with pytest.raises(BatchError, match="at sample 3, feature 1"):
        trainer.step(x, y)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_resume_goes_on_in_the_same_order(
    batch: tuple[Tensor, Tensor], tmp_path: Path, steps: int
) -> None:
    trainer = made(seed=3)
    for _ in range(steps):
        trainer.step(*batch)
    trainer.save(tmp_path / "saved.safetensors")
    resumed = Trainer.resume(tmp_path / "saved.safetensors", made().model)
    for _ in range(2):
        trainer.step(*batch)
        resumed.step(*batch)
    assert_same_state(snapshot(resumed), snapshot(trainer))


def test_a_state_of_before_is_read(batch: tuple[Tensor, Tensor]) -> None:
    """It told whether the last batch had been given again, and knew fewer numbers of the program's."""
    trainer, other = made(), made()
    trainer.step(*batch)
    state = snapshot(trainer)
    state["counters"]["repeated"] = True
    del state["counters"]["_held"]
    for name in ("measured", "leeway"):
        del state["states"][name]
        other.state_dict()["states"][name].fill_(7)  # begins anew
    other.load_state_dict(state)
    for _ in range(2):
        trainer.step(*batch)
        other.step(*batch)
    assert_same_state(snapshot(other), snapshot(trainer))


@pytest.mark.parametrize(
    "settings",
    [
        Settings(method="adam"),
        Settings(factor_share=1.0, quadratic_share=1.0, quadratic_samples=2 * COUNT),
        Settings(factor_samples=COUNT, quadratic_samples=2 * COUNT),
    ],
)
def test_rows_stay_as_they_are_where_all_are_used(settings: Settings) -> None:
    assert all(reading_order(settings, COUNT, number, 0, CPU) is None for number in range(3))


def test_every_step_has_an_order_of_its_own() -> None:
    settings = Settings(factor_samples=8)
    orders = []
    for number in range(4):
        rows = reading_order(settings, COUNT, number, 0, CPU)
        again = reading_order(settings, COUNT, number, 0, CPU)
        assert rows is not None
        assert again is not None
        assert torch.equal(rows, again)
        assert torch.equal(rows.sort().values, torch.arange(COUNT))
        orders.append(tuple(rows.tolist()))
    other = reading_order(settings, COUNT, 0, 1, CPU)
    assert other is not None
    assert len({*orders, tuple(other.tolist())}) == 5


# --- Orders that a user may give ----------------------------------------------------------------------

SAMPLES = 400
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sorted": lambda rows: rows,
    "backwards": lambda rows: rows.flip(0),
    "halves in turn": lambda rows: rows.view(2, -1).T.reshape(-1),
}


def trained(order: Callable[[Tensor], Tensor], seed: int) -> float:
    """The logarithm of a curve's loss after 80 updates on all its points, an eighth for factors and steps."""
    rows = order(torch.arange(SAMPLES))
    x = torch.linspace(-1, 1, SAMPLES, dtype=torch.float64)[:, None]
    y = torch.sin(4 * x) + x
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    parts = {"factor_share": 0.125, "factor_samples": 1, "quadratic_share": 0.125}
    trainer = gncompile.compile(model, "mse", x, quadratic_samples=1, gather_noise=None, **parts)
    for _ in range(80):
        trainer.step(x[rows], y[rows])
    return math.log(float(trainer.loss(x, y)))


def test_no_order_of_rows_matters_more_than_noise() -> None:
    """Each order's loss, as a mean over seeds, within a factor of 3 of that of shuffled batches."""
    seeds = range(2)
    shuffled = sum(trained(lambda rows: torch.randperm(len(rows)), seed) for seed in seeds) / len(
        seeds
    )
    for name, order in ORDERS.items():
        mean = sum(trained(order, seed) for seed in seeds) / len(seeds)
        assert mean < shuffled + math.log(3), name
