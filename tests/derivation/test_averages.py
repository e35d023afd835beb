"""Averaged parameters: when they are used, what a model holds after a fit, and that training goes on from
the latest ones."""

from __future__ import annotations

from pathlib import Path

import oracles
import pytest
import torch
from torch import Tensor, nn
from training import assert_same_state, compiled, network, samples, snapshot

import gncompile
from gncompile.data import Batches
from gncompile.derivation import averages
from gncompile.program.timetable import COMPARED
from gncompile.training import checkpoint
from gncompile.training.order import as_read
from gncompile.training.trainer import Trainer


def noisy(seed: int = 0, **options: object) -> tuple[Trainer, Batches]:
    """A linear regression in which noise is all that is left: latest parameters move around the minimum."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    y = x[:, :2] + torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Linear(6, 2).double()
    trainer = gncompile.compile(model, "mse", x[:2], **options)  # type: ignore[arg-type]
    return trainer, Batches(x, y, batch_size=40, seed=seed)


def values(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("guarded", [False, True])
def test_the_average_is_better_on_noisy_batches(guarded: bool) -> None:
    """With one of the eight in ten seeds whose last comparison, on 256 samples, finds it out."""
    trainer, data = noisy(seed=2, guarded=guarded)
    trainer.fit(data, updates=200, progress=False)
    losses = {kind: trainer.evaluate(data.x, data.y, averaged=kind) for kind in (None, True, False)}
    best = oracles.mean_loss(least_squares(data), "mse", data.x, data.y)
    assert losses[None] == losses[True] < losses[False]
    # Averaging takes away most of what the latest parameters lose to noise.
    assert losses[True] - best < (losses[False] - best) / 2


def least_squares(data: Batches) -> nn.Linear:
    """The minimum itself."""
    extended = torch.cat([data.x, data.x.new_ones(len(data.x), 1)], dim=1)
    solution = torch.linalg.lstsq(extended, data.y).solution
    model = nn.Linear(6, 2).double()
    with torch.no_grad():
        model.weight.copy_(solution[:-1].T)
        model.bias.copy_(solution[-1])
    return model


def test_the_latest_are_better_where_nothing_is_noise() -> None:
    trainer, x, y = compiled(network()), *samples(30)
    for _ in range(COMPARED + 1):
        trainer.step(x, y)
    assert trainer.evaluate(x, y) == trainer.evaluate(x, y, averaged=False)
    assert trainer.evaluate(x, y) < trainer.evaluate(x, y, averaged=True)
    latest = values(trainer)
    trainer.finish()
    assert same(values(trainer), latest)


def test_a_fit_leaves_the_better_parameters_and_training_goes_on_from_the_latest() -> None:
    whole, data = noisy()
    whole.fit(data, updates=90, progress=False)
    parted, data = noisy()
    parted.fit(data, updates=50, progress=False)
    with parted.averaged_parameters(True):
        average = values(parted)
    assert same(values(parted), average)
    with parted.averaged_parameters(False):
        latest = values(parted)
    assert not same(average, latest)
    assert same(values(parted), average)
    parted.fit(data, updates=40, progress=False)
    assert same(values(parted), values(whole))
    assert_same_state(snapshot(parted), snapshot(whole))


def test_parameters_given_to_the_model_after_a_fit_are_kept() -> None:
    trainer, data = noisy()
    trainer.fit(data, updates=50, progress=False)
    given = torch.full_like(values(trainer)[0], 3.0)
    with torch.no_grad():
        trainer.model.weight.copy_(given)  # type: ignore[operator, union-attr]
    x, y = data.x[:40], data.y[:40]
    expected = oracles.mean_loss(trainer.model, "mse", x, y)
    assert trainer.step(x, y).loss == pytest.approx(float(expected.detach()), rel=1e-12)


@pytest.mark.parametrize("ended", [True, False])
def test_one_truth(ended: bool, tmp_path: Path) -> None:
    """What evaluate tells is what predict, the checkpoint, and the model after fit and resume are."""
    trainer, data = noisy()
    if ended:
        trainer.fit(data, updates=50, progress=False)
    else:
        for _ in range(50):
            trainer.step(*data.next())
    told = trainer.evaluate(data.x, data.y)
    assert told == trainer.evaluate(data.x, data.y, averaged=True)
    assert told < trainer.evaluate(data.x, data.y, averaged=False)

    def of(outputs: Tensor) -> float:
        return float(0.5 * (outputs - data.y).square().sum(dim=1).mean())

    assert of(trainer.predict(data.x)) == pytest.approx(told, rel=1e-12)
    latest = trainer.evaluate(data.x, data.y, averaged=False)
    assert of(trainer.predict(data.x, averaged=False)) == pytest.approx(latest, rel=1e-12)
    # In a loop of steps the model holds the latest.
    assert of(trainer.model(data.x)) == pytest.approx(told if ended else latest, rel=1e-12)
    path = tmp_path / "run.safetensors"
    trainer.save(path)
    stored = checkpoint.load(path).state
    plain = nn.Linear(6, 2).double()
    plain.load_state_dict(stored["model"])
    assert of(plain(data.x)) == pytest.approx(told, rel=1e-12)
    plain.load_state_dict(stored["latest"])
    assert of(plain(data.x)) == pytest.approx(latest, rel=1e-12)
    resumed = Trainer.resume(path, plain)
    assert of(plain(data.x)) == pytest.approx(told, rel=1e-12)
    assert torch.equal(resumed.predict(data.x), trainer.predict(data.x))
    assert resumed.evaluate(data.x, data.y) == told
    following = data.x[:40], data.y[:40]
    assert resumed.step(*following) == trainer.step(*following)
    trainer.finish()
    assert of(trainer.model(data.x)) == pytest.approx(trainer.evaluate(data.x, data.y), rel=1e-12)


def test_a_checkpoint_of_the_first_format_is_read(tmp_path: Path) -> None:
    """There ``model/…`` held the latest parameters."""
    trainer, data = noisy()
    trainer.fit(data, updates=50, progress=False)
    state = snapshot(trainer)
    assert state["latest"]
    old = {**state, "model": state["model"] | state["latest"]}
    del old["latest"]
    other = noisy(seed=1)[0]
    other.load_state_dict(old)
    assert_same_state(snapshot(other), state)
    assert same(values(other), values(trainer))


def write(mine: nn.Parameter, its: Tensor) -> None:
    with torch.no_grad():
        mine.copy_(its)


def replace_data(mine: nn.Parameter, its: Tensor) -> None:
    mine.data = its.detach().clone()


GIVEN = {"in place": write, "through .data": lambda m, i: m.data.copy_(i), "as .data": replace_data}


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("give", GIVEN)
def test_parameters_given_in_a_loop_of_steps_are_what_is_told(give: str, ended: bool) -> None:
    """The averages were better than others, not than these; torch does not count what ``.data`` is given."""
    trainer, data = noisy()
    for _ in range(50):
        trainer.step(*data.next())
    if ended:
        trainer.finish()
    best = least_squares(data)
    assert trainer.evaluate(data.x, data.y) != trainer.evaluate(data.x, data.y, averaged=False)
    for mine, its in zip(trainer.model.parameters(), best.parameters(), strict=True):
        GIVEN[give](mine, its)
    expected = float(oracles.mean_loss(best, "mse", data.x, data.y).detach())
    assert trainer.evaluate(data.x, data.y) == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(trainer.predict(data.x), best(data.x), rtol=1e-12)


def test_a_checkpoint_is_that_of_a_training_that_goes_on(tmp_path: Path) -> None:
    trainer, data = noisy()
    trainer.fit(data, updates=50, progress=False)
    shown = values(trainer)
    trainer.save(tmp_path / "run.safetensors")
    assert same(values(trainer), shown)
    other = noisy(seed=1)[0].model
    resumed = Trainer.resume(tmp_path / "run.safetensors", other)
    resumed.fit(data, updates=10, progress=False)
    again, data = noisy()
    again.fit(data, updates=60, progress=False)
    assert same(values(resumed), values(again))


def test_without_an_average_the_latest_are_all_there_is() -> None:
    for options in ({"average": 0.0}, {"method": "adam"}):
        trainer, data = noisy(**options)
        trainer.fit(data, updates=30, progress=False)
        assert trainer.evaluate(data.x, data.y, averaged=True) == trainer.evaluate(data.x, data.y)


def test_the_comparison_is_a_phase_of_its_own() -> None:
    program = compiled(network()).program
    assert "compare" in program.phases
    assert "compare" not in compiled(network(), average=0.0).program.phases


@pytest.mark.parametrize("guarded", [False, True])
def test_the_comparison_looks_at_the_samples_of_the_factors(
    guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last quarter of the batch as it is read, which at times decides otherwise than all of it would.

    Noise leads where the average is better by some part of the loss.
    """
    monkeypatch.setattr(averages, "LEAD", 1e-4)  # these steps are short
    decisions = set()
    for seed in range(12):
        trainer, data = noisy(seed, guarded=guarded, factor_samples=1, whole_inputs=0)
        for _ in range(COMPARED):
            trainer.step(data.x[:400], data.y[:400].flip(1))
        x, y = as_read(trainer, data.x[400:480], data.y[400:480])
        (share, latest), (average_of_all, latest_of_all) = (
            [trainer.evaluate(x[rows], y[rows], averaged=kind) for kind in (True, False)]
            for rows in (slice(60, 80), slice(80))
        )
        trainer.step(data.x[400:480], data.y[400:480])
        states = trainer.state_dict()["states"]
        assert bool(states["average_is_better"]) == (share < latest)
        assert bool(states["noise_leads"]) == (share < (1 - 1e-4) * latest)
        decisions.add((share < latest, average_of_all < latest_of_all, share < (1 - 1e-4) * latest))
    assert {better for better, _, _ in decisions} == {True, False}
    assert any(better != by_all for better, by_all, _ in decisions)
    assert any(better and not leads for better, _, leads in decisions)
    assert any(leads for _, _, leads in decisions)
