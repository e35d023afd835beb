"""Training with dropout: modes, refusals, resumption, and answers that drop nothing."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gncompile
from gncompile.errors import BatchError, ModelChangedError
from gncompile.training.trainer import Trainer

INPUTS, N = 6, 64


def network(p: float = 0.4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Dropout(p / 2), nn.Linear(INPUTS, 8), nn.ReLU(inplace=True), nn.Dropout(p)
    return nn.Sequential(*layers, nn.Linear(8, 2)).double()


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(N, INPUTS, generator=draw, dtype=torch.float64)
    return x, torch.randn(N, 2, generator=draw, dtype=torch.float64)


def compiled(model: nn.Module, **options: Any) -> Trainer:
    return gncompile.compile(model, "mse", torch.zeros(1, INPUTS).double(), seed=7, **options)


def same_state(a: Trainer, b: Trainer) -> bool:
    first, second = a.state_dict(), b.state_dict()
    groups = ("model", "states", "generator")
    return all(torch.equal(t, second[g][name]) for g in groups for name, t in first[g].items())


OPTIONS: dict[str, dict[str, Any]] = {
    "looked after": {"method": "kfac", "average": 0.9},
    "ahead of the host": {"guarded": True},
    "adam": {"method": "adam"},
}
TWO = pytest.mark.parametrize("options", [OPTIONS["ahead of the host"], OPTIONS["adam"]])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_resumed_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    whole = compiled(network(), **options)
    for number in range(4):
        whole.step(*batch(number))
        if number == 1:
            whole.save(tmp_path / "saved")
    resumed = Trainer.resume(tmp_path / "saved", network())
    for number in (2, 3):
        resumed.step(*batch(number))
    assert same_state(whole, resumed)


def test_equal_seeds_drop_alike_and_others_do_not() -> None:
    found = []
    for seed in (7, 7, 8):
        trainer = gncompile.compile(network(), "mse", torch.zeros(1, INPUTS).double(), seed=seed)
        trainer.step(*batch())
        found.append(float(trainer.step(*batch()).loss))
    assert found[0] == found[1] != found[2]


@TWO
def test_answers_are_without_dropout_and_change_nothing(options: dict[str, Any]) -> None:
    model, (x, y) = network(), batch()
    trainer, asked = compiled(model, **options), compiled(network(), **options)
    for number in range(3):
        trainer.step(*batch(number))
        asked.step(*batch(number))
        asked.loss(x, y)
        asked.gradients(x, y)
        asked.predict(x[:5])
    assert same_state(trainer, asked)
    trainer.reported.hide()  # the model holds the latest parameters
    plain = copy.deepcopy(model).eval()
    z = plain(x)
    expected = (z - y).square().sum(1).mean() / 2
    torch.testing.assert_close(trainer.loss(x, y), expected.detach())
    assert math.isclose(trainer.evaluate(x, y, averaged=False), float(expected.detach()))
    torch.testing.assert_close(trainer.predict(x, averaged=False), z.detach())
    found = trainer.gradients(x, y)
    for (name, _), g in zip(
        plain.named_parameters(),
        torch.autograd.grad(expected, list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found[name], g)
    direction = {name: torch.randn_like(p) for name, p in plain.named_parameters()}
    exact = torch.func.jvp(
        lambda theta: torch.func.functional_call(plain, theta, (x,)),
        (dict(plain.named_parameters()),),
        (direction,),
    )[1]
    torch.testing.assert_close(trainer.rop(x, direction), exact.detach())


@TWO
def test_a_model_in_evaluation_mode_is_trained_without_dropout(options: dict[str, Any]) -> None:
    model, plain = network(), network(p=0.0)
    trainer, expected = compiled(model, **options), compiled(plain, **options)
    model.eval()
    for number in range(2):
        found = trainer.step(*batch(number)).loss
        assert math.isclose(found, expected.step(*batch(number)).loss, rel_tol=1e-9)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    model.train()
    trainer.step(*batch(2))
    assert not math.isclose(trainer.step(*batch(3)).loss, expected.step(*batch(3)).loss)


def test_modes_in_turn_are_the_same_training() -> None:
    model, (x, y) = network(), batch()
    trainer, undisturbed = compiled(model), compiled(network())
    for number in range(5):
        trainer.step(*batch(number))
        model.eval()
        model(x)
        trainer.evaluate(x, y)
        model.train()
        undisturbed.step(*batch(number))
    assert same_state(trainer, undisturbed)


def test_some_of_the_dropouts_in_evaluation_mode_is_another_function() -> None:
    model = network()
    trainer = compiled(model)
    model[3].eval()
    with pytest.raises(ModelChangedError, match="computes another function"):
        trainer.step(*batch())
    model.train()
    trainer.step(*batch())


def test_compiled_in_evaluation_mode_training_mode_is_another_function() -> None:
    model = network().eval()
    trainer = compiled(model)
    trainer.step(*batch())
    model.train()
    with pytest.raises(ModelChangedError, match="computes another function"):
        trainer.step(*batch())


def test_copies_drop_alike_whatever_the_mode() -> None:
    model = network()
    trainer = compiled(model)
    trainer.step(*batch())
    model.eval()
    twin = copy.deepcopy(trainer)
    assert not twin.model.training
    model.train()
    twin.model.train()
    for number in range(2):
        assert trainer.step(*batch(number)).loss == twin.step(*batch(number)).loss


def test_a_refused_step_leaves_the_draws_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, undisturbed = compiled(network()), compiled(network())
    for each in (trainer, undisturbed):
        each.step(*batch())
    x, y = batch(1)
    bad = x.clone()
    bad[0, 0] = math.nan
    with pytest.raises(BatchError):
        trainer.step(bad, y)

    def broken(*phases: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._steps.looked_after, "_second_order_step", broken)
        with pytest.raises(KeyboardInterrupt):
            trainer.step(x, y)
    assert same_state(trainer, undisturbed)
    assert trainer.step(x, y).loss == undisturbed.step(x, y).loss


def test_a_step_draws_once_even_where_the_one_before_is_undone() -> None:
    trainer, undisturbed = compiled(network()), compiled(network())
    for each in (trainer, undisturbed):
        each.step(*batch())
    with torch.no_grad():
        trainer.model[1].weight.fill_(math.inf)
    assert trainer.step(*batch()).rejected == 1
    undisturbed.step(*batch())
    drawn = [each.state_dict()["generator"]["state"] for each in (trainer, undisturbed)]
    assert torch.equal(*drawn)


class Always(nn.Module):
    """Dropout that no mode turns off."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(INPUTS, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.two(functional.dropout(torch.relu(self.one(x)), 0.5))
        return z


def test_dropout_that_no_mode_turns_off() -> None:
    model, (x, y) = Always().double().eval(), batch()
    trainer = compiled(model)
    first, second = (trainer.step(x, y).loss for _ in range(2))
    assert first != second
    exact = model.two(torch.relu(model.one(x))).detach()
    torch.testing.assert_close(trainer.predict(x, averaged=False), exact)


def test_training_with_dropout_learns() -> None:
    model = network(0.2)
    trainer = compiled(model)
    x, _ = batch()
    y = torch.tanh(x[:, :2])
    before = trainer.evaluate(x, y)
    trainer.fit([(x, y)] * 40, epochs=1, progress=False)
    assert trainer.evaluate(x, y) < 0.3 * before
