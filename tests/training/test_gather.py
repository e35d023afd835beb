"""Batches put together for a step, and the measurement of noise that says how many."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import OUTPUTS, WIDTH, compiled, network, samples

import gncompile
from gncompile.data import Batches
from gncompile.errors import (
    BatchError,
    CompileError,
    DataError,
    GncompileError,
    SmallBatchWarning,
)
from gncompile.program.timetable import MEASURED
from gncompile.runtime.memory import dense
from gncompile.training.trainer import Trainer

NOISE = "noise"
Batch = tuple[Tensor, Tensor]


def trainer_wanting(count: int, **options: object) -> Trainer:
    return compiled(network(), **{"gather_samples": count, **options})  # type: ignore[arg-type]


def small(count: int, size: int) -> list[Batch]:
    """Batches of different samples."""
    return [samples(size, seed=seed) for seed in range(count)]


def sizes(batches: Iterator[Batch]) -> list[int]:
    return [len(y) for _, y in batches]


# --- Putting batches together -------------------------------------------------------------------------


def test_samples_stay_in_order() -> None:
    given = small(7, 10)
    gathered = list(trainer_wanting(25).gather(given))
    assert sizes(iter(gathered)) == [30, 30, 40]  # the last with the one before
    assert torch.equal(
        torch.cat([y for _, y in gathered[:2]]), torch.cat([y for _, y in given[:6]])
    )
    x, y = gathered[-1]
    assert torch.equal(x, torch.cat([x for x, _ in given[3:]]))
    assert torch.equal(y, torch.cat([y for _, y in given[3:]]))


def test_a_large_batch_is_passed_on_as_it_is() -> None:
    given = small(3, 10)
    for (x, y), (x_given, y_given) in zip(trainer_wanting(10).gather(given), given, strict=True):
        assert x is x_given
        assert y is y_given


def test_a_step_may_go_on_from_one_pass_to_the_next() -> None:
    trainer = trainer_wanting(20)
    assert sizes(trainer.gather(small(3, 10), epochs=3)) == [20, 20, 20, 20, 30]
    assert sizes(trainer.gather(small(4, 10), epochs=2)) == [20] * 4


def test_a_pass_is_enough() -> None:
    trainer = trainer_wanting(1000)
    assert sizes(trainer.gather(small(3, 10), epochs=2)) == [30, 30]
    assert sizes(trainer.gather(Batches(*samples(50), 16), epochs=2)) == [50, 50]


def test_without_end() -> None:
    gathered = trainer_wanting(25).gather(small(3, 10), epochs=None)
    assert [len(next(gathered)[1]) for _ in range(20)] == [30] * 20


def test_an_iterator_is_gone_through_once() -> None:
    assert sizes(trainer_wanting(20).gather(iter(small(5, 10)), epochs=None)) == [20, 20, 30]


def test_a_full_batch_that_comes_again_is_not_repeated() -> None:
    x, y = samples(10)
    assert sizes(trainer_wanting(25).gather([(x, y)] * 4)) == [10, 10, 10]
    assert sizes(trainer_wanting(25).gather([(x, y)], epochs=3)) == [10, 10, 10]


def test_a_target_that_is_the_input_stays_it() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
    trainer = gncompile.compile(model, "mse", torch.zeros(2, 4), gather_samples=8)
    given = [(x, x) for x in torch.randn(4, 5, 4)]
    for x, y in trainer.gather(given):
        assert x is y


def test_several_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 3), nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.left(a) + self.right(b)

    trainer = gncompile.compile(
        Sum(), "mse", (torch.zeros(2, 2), torch.zeros(2, 4)), gather_samples=6
    )
    given = [((torch.randn(3, 2), torch.randn(3, 4)), torch.randn(3, 3)) for _ in range(2)]
    ((x, y),) = trainer.gather(given)
    for position in (0, 1):
        assert torch.equal(x[position], torch.cat([each[position] for each, _ in given]))
    assert y.shape == (6, 3)


def test_first_order_methods_take_batches_as_they_are() -> None:
    trainer = gncompile.compile(network(), "mse", torch.zeros(2, WIDTH).double(), "adam")
    assert sizes(trainer.gather(small(3, 10))) == [10, 10, 10]


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ((torch.zeros(3, WIDTH + 1).double(), torch.zeros(3, OUTPUTS).double()), "the wrong shape"),
        (
            (torch.full((3, WIDTH), math.nan).double(), torch.zeros(3, OUTPUTS).double()),
            "non-finite",
        ),
        (
            (torch.zeros(3, WIDTH).double(), torch.full((3, OUTPUTS), math.inf).double()),
            "in target",
        ),
    ],
)
def test_a_bad_batch_is_refused_by_itself(batch: Batch, found: str) -> None:
    trainer = trainer_wanting(20)
    with pytest.raises(BatchError, match=found):
        list(trainer.gather([*small(1, 10), batch]))
    given = [*small(1, 10), batch, *small(1, 10)]
    history = trainer.fit(given, epochs=1, skip_bad_batches=True, progress=False)
    assert history.samples == [20]
    assert history.skipped == 1


def test_wrong_data() -> None:
    with pytest.raises(DataError, match="no batches"):
        list(trainer_wanting(20).gather([]))
    with pytest.raises(GncompileError, match="the training data is a tuple of tensors"):
        list(trainer_wanting(20).gather(samples()))


# --- fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True])
def test_fit_gathers(guarded: bool) -> None:
    fitted, stepped = (trainer_wanting(25, guarded=guarded) for _ in range(2))
    loader = DataLoader(TensorDataset(*samples(50)), batch_size=10)
    history = fitted.fit(loader, epochs=2, progress=False, validation=samples(20, seed=3))
    losses = [float(stepped.step(x, y).loss) for x, y in stepped.gather(loader, epochs=2)]
    assert history.samples == [30, 30, 30, 40]  # what is left at the end with the step before
    assert history.loss == losses
    assert [r.update for r in history if r.validation_loss is not None] == [2, 4]


def test_a_step_is_no_longer_than_asked() -> None:
    history = trainer_wanting(25).fit(Batches(*samples(50), 10), updates=3, progress=False)
    assert history.samples == [30, 30, 30]


@pytest.mark.parametrize("wanted", [25, 1000])
def test_resume_is_bitwise(wanted: int, tmp_path: Path) -> None:
    """Within a pass, and where a step is a pass."""
    whole = trainer_wanting(wanted, gather_noise=0.5)
    expected = whole.fit(Batches(*samples(50), 10), updates=24, progress=False)
    begun = trainer_wanting(wanted, gather_noise=0.5)
    path = tmp_path / "checkpoint.safetensors"
    begun.fit(Batches(*samples(50), 10), updates=13, progress=False, checkpoint=path)
    resumed = Trainer.resume(path, network(seed=5))
    rest = resumed.fit(Batches(*samples(50), 10), updates=11, progress=False)
    assert rest.samples == expected.samples[13:]
    assert rest.loss == expected.loss[13:]


def test_tiny_batches_are_learned_from() -> None:
    """In steps on single samples the loss of this problem is above 50 after three passes."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    trainer = gncompile.compile(model, "cross_entropy", x[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", SmallBatchWarning)
        trainer.fit(Batches(x, y, batch_size=1), epochs=20, progress=False)
    assert trainer.evaluate(x, y) < 0.1


# --- The measurement of noise ------------------------------------------------------------------------


def exact_noise(
    trainer: Trainer, model: nn.Module, x: Tensor, y: Tensor, rows: slice
) -> tuple[float, float]:
    """``E[g_nᵀP g_n]`` over ``rows``, by autograd one sample at a time, and ``gᵀPg`` of the whole batch."""
    program, states = trainer._executable.program, trainer._executable.memory.states

    def square(gradient: dict[str, Tensor]) -> float:
        total = 0.0
        for layer, joined in trainer.compiled.join(gradient).items():
            q, g = (
                dense(
                    states[f"{kind}_inverse.{layer}"],
                    program.states[f"{kind}_inverse.{layer}"].spec,
                )
                for kind in "QG"
            )
            total += float((joined * (g @ joined @ q)).sum())
        return total

    def gradient(part: slice) -> dict[str, Tensor]:
        parameters = dict(model.named_parameters())
        z = model(x[part])
        loss = nn.functional.binary_cross_entropy_with_logits(z, y[part], reduction="sum") / len(z)
        found = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, found, strict=True))

    each = [square(gradient(slice(i, i + 1))) for i in range(*rows.indices(len(x)))]
    return sum(each) / len(each), square(gradient(slice(None)))


def drawn_noise(
    name: str, guarded: bool, backend: str, draws: int
) -> tuple[Trainer, nn.Module, Tensor]:
    """A trainer after three steps on ``samples(40)``, its network, and shares of noise by as many draws."""
    model = network(name)
    options = {"gather_noise": 0.75, "factor_samples": 16, "guarded": guarded, "backend": backend}
    trainer = compiled(model, **options)
    x, y = samples(40)
    for _ in range(3):
        trainer.step(x.clone(), y)
    executable = trainer._executable
    executable.load((x,), y)
    executable.run("gradient", "direction")
    shares = []
    for _ in range(draws):
        executable.run("gradient_noise")
        shares.append(float(executable.memory.states[NOISE]))
    return trainer, model, torch.tensor(shares, dtype=torch.float64)


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("name", ["plain", "residual", "gated"])
def test_noise_is_that_of_the_samples(name: str, guarded: bool) -> None:
    """The mean over many draws of signs is the exact trace, which autograd gives sample by sample.

    The reference, which interprets each draw, makes the first few: the same numbers, to rounding.
    """
    trainer, model, drawn = drawn_noise(name, guarded, "torch", 3000)
    _, _, first = drawn_noise(name, guarded, "reference", 20)
    torch.testing.assert_close(first, drawn[:20], rtol=1e-9, atol=0)
    x, y = samples(40)
    trace, power = exact_noise(trainer, model, x, y, slice(24, None))
    error = float(drawn.std()) / math.sqrt(len(drawn))
    assert error < 0.03 * float(drawn.mean())
    assert abs(float(drawn.mean()) - trace / len(x) / power) < 4 * error


def test_one_sample_is_all_noise() -> None:
    """One sign squared is 1, so there is nothing random: the share is 1 to rounding, no signal is left."""
    trainer = compiled(network(), gather_noise=0.75)
    for seed in range(MEASURED // 2 + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallBatchWarning)
            stats = trainer.step(*samples(1, seed=seed))
        assert (stats.noise is not None) == (seed == MEASURED // 2)
    assert stats.noise == pytest.approx(1, rel=1e-12)


def noisy(trainer: Trainer, steps: int, size: int = 64) -> None:
    """Steps on targets that have nothing to do with the inputs."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
        trainer.step(x, torch.rand(size, OUTPUTS, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("guarded", [False, True])
def test_noise_asks_for_twice_the_samples(guarded: bool) -> None:
    trainer = compiled(network(), gather_samples=32, gather_noise=0.2, guarded=guarded)
    noisy(trainer, MEASURED // 2)
    assert trainer.samples_wanted == 32
    noisy(trainer, 1)
    assert trainer.samples_wanted == 128
    noisy(trainer, MEASURED, size=128)
    assert trainer.samples_wanted == 256
    noisy(trainer, 2 * MEASURED)
    assert trainer.samples_wanted == 256  # steps on fewer than wanted do not ask for more


def test_noise_that_lasts_is_enough() -> None:
    """A share just below the bound is above it some measurements later."""
    trainer = compiled(network(), gather_samples=64, gather_noise=0.999)
    states = trainer._executable.memory.states
    for measurement in range(6):
        waited = float(states["noise_waited"])
        assert waited == (measurement if measurement < 5 else 0)
        assert trainer.samples_wanted == (64 if measurement < 5 else 73)
        # A share of 0.96 at 64 samples, to which what is measured adds nothing.
        states["sample_noise"].fill_(0.96e30 * 64)
        states["signal"].fill_(0.04e30)
        noisy(trainer, MEASURED, size=64)


def test_a_clear_gradient_does_not() -> None:
    trainer = compiled(network(), gather_samples=32, gather_noise=0.9)
    for seed in range(MEASURED):
        trainer.step(*samples(400, seed=seed))
    assert trainer.samples_wanted == 32


def test_work_buffers_stay_within_the_memory_budget() -> None:
    budget = 100_000
    trainer = compiled(network("gated"), gather_samples=32, gather_noise=0.5, memory_budget=budget)
    for _ in range(4):
        noisy(trainer, MEASURED, size=trainer.samples_wanted)
    assert 32 < trainer.samples_wanted < 4 * 32
    # Buffers whose size does not follow from the batch are not in the estimate.
    assert 0.5 * budget < trainer._executable.memory.buffer_bytes < 1.2 * budget


def test_it_can_be_left_out() -> None:
    trainer = compiled(network(), gather_noise=None)
    assert "gradient_noise" not in trainer._executable.program.phases
    noisy(trainer, 2 * MEASURED)
    assert trainer.samples_wanted == 1


@pytest.mark.parametrize(
    "option", [{"gather_samples": 0}, {"gather_noise": 1.0}, {"gather_noise": 0.0}]
)
def test_wrong_options(option: dict[str, float]) -> None:
    with pytest.raises(CompileError, match=next(iter(option))):
        compiled(network(), **option)


@pytest.mark.parametrize("buffers", ["inputs", "both"])
def test_a_loader_that_fills_the_same_tensor_again(buffers: str) -> None:
    """What waits to be joined is kept as it was given, and no input goes with another batch's target."""
    x = torch.arange(420.0).reshape(140, 3)
    y = x.sum(dim=1, keepdim=True)
    held, target = torch.empty(20, 3), torch.empty(20, 1)

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in range(0, 140, 20):
            held.copy_(x[rows : rows + 20])
            target.copy_(y[rows : rows + 20])
            yield held, target if buffers == "both" else y[rows : rows + 20]

    trainer = gncompile.compile(nn.Linear(3, 1), "mse", x[:1], gather_samples=60)
    got = [(a.clone(), b.clone()) for a, b in trainer.gather(loader())]
    rows = (slice(0, 60), slice(60, 120), slice(60, 140))
    assert [len(b) for _, b in got] == [60, 60, 80]
    for (a, b), part in zip(got, rows, strict=True):
        assert torch.equal(a, x[part])
        assert torch.equal(b, y[part])
