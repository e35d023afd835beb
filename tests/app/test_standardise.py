"""``compile(standardise=…)``: the training of standardised data, in the data's own units."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_close
from torch import Tensor, nn

import gncompile
from gncompile.errors import CheckpointError, CompileError, LossError
from gncompile.frontends.standardised import means_and_scales

ROUNDING = 1e-10
"""Relative, of losses in float64 after a few steps on numbers of other scales, each of which grows it."""


def table(count: int = 300) -> tuple[Tensor, Tensor]:
    """Columns of scales from 0.1 to 1000 far from 0, and two targets of scales 300 and 0.001."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(count, 8, generator=draw, dtype=torch.float64)
    x = z * torch.logspace(-1, 3, 8) + torch.linspace(-50, 500, 8)
    y = torch.stack(
        [1000 + 300 * (z[:, 0] * z[:, 1]).sin(), 1e-3 * (z[:, 3] ** 2 + z[:, 4])], dim=1
    )
    return x, y


X, Y = table()


def net(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, outputs)).double()


def by_hand(values: Tensor) -> Tensor:
    mean, scale = means_and_scales(values)
    return (values - mean) / scale


@pytest.mark.parametrize("loss", ["mse", nn.MSELoss(), "huber"], ids=str)
def test_inputs_and_targets(loss: Any) -> None:
    """Losses are those of standardised data, predictions in the user's units, and the module is theirs."""
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = gncompile.compile(model, loss, X[:1], standardise=(X, Y))
        outside = gncompile.compile(net(), loss, X[:1])
        for _ in range(4):
            wanted = outside.step(by_hand(X), by_hand(Y)).loss
            assert inside.step(X, Y).loss == pytest.approx(wanted, rel=ROUNDING)
    assert inside.evaluate(X, Y) == pytest.approx(
        outside.evaluate(by_hand(X), by_hand(Y)), rel=ROUNDING
    )
    mean, scale = means_and_scales(Y)
    wanted = mean + scale * outside.predict(by_hand(X))
    assert_close(inside.predict(X), wanted, ROUNDING)
    inside.finish()
    assert isinstance(inside.model, gncompile.Standardised)
    assert inside.model.module is model
    assert_close(inside.model(X), wanted, ROUNDING)


def test_inputs_alone_for_any_loss() -> None:
    labels = (X[:, 0] > -50).long()
    inside = gncompile.compile(net(), "cross_entropy", X, standardise=True)
    outside = gncompile.compile(net(), "cross_entropy", X)
    for _ in range(4):
        wanted = outside.step(by_hand(X), labels).loss
        assert inside.step(X, labels).loss == pytest.approx(wanted, rel=ROUNDING)


def test_unscaled_data_train_as_well_as_scaled_ones() -> None:
    """A tenth of a constant's loss at most, where without it nothing is learned."""
    torch.manual_seed(0)
    found = []
    for options in ({}, {"standardise": (X, Y)}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gncompile.errors.UnscaledDataWarning)
            trainer = gncompile.compile(net(), "mse", X, **options)
            trainer.fit([(X, Y)], updates=40, progress=False)
        error = (trainer.predict(X) - Y) / means_and_scales(Y)[1]
        found.append(float(0.5 * error.square().sum(dim=1).mean()))
    assert found[1] < 0.1 * min(found[0], 1.0)


@pytest.mark.parametrize("standardise", [True, (X, Y)], ids=["inputs", "both"])
def test_a_checkpoint_is_resumed_with_the_module_that_was_given(
    standardise: Any, tmp_path: Path
) -> None:
    trainer = gncompile.compile(net(), "mse", X, standardise=standardise)
    trainer.step(X, Y)
    trainer.save(tmp_path / "a")
    copied = copy.deepcopy(trainer)
    resumed = [
        gncompile.Trainer.resume(tmp_path / "a", net()),
        gncompile.Trainer.resume(tmp_path / "a", net(), "mse"),
        gncompile.Trainer.resume(tmp_path / "a", copy.deepcopy(trainer.model)),
        copied,
    ]
    wanted = trainer.step(X, Y).loss, trainer.step(X, Y).loss
    for other in resumed:
        assert (other.step(X, Y).loss, other.step(X, Y).loss) == wanted
    with pytest.raises(CheckpointError, match="another model"):
        gncompile.Trainer.resume(tmp_path / "a", net(), "huber")


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"example_inputs": X[:1]}, CompileError, "all samples are equal"),
        ({"example_inputs": torch.zeros(5, 8).double()}, CompileError, "all samples are equal"),
        ({"example_inputs": (X, X)}, CompileError, "example_inputs are of type tuple"),
        ({"example_inputs": X, "standardise": (X, Y.long())}, CompileError, "hold int64"),
        ({"example_inputs": X, "standardise": "yes"}, CompileError, "standardise is str"),
        ({"example_inputs": X, "standardise": (X, Y), "loss": "cross_entropy"}, LossError, "inputs only"),
    ],
)  # fmt: skip
def test_what_tells_no_scales_is_refused(options: Any, kind: type, told: str) -> None:
    with pytest.raises(kind, match=told):
        gncompile.compile(net(), **{"loss": "mse", "standardise": True, **options})
