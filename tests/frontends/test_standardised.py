"""Standardising inside a module: the same training as on standardised data, in the data's own units."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile.errors import DataError, LossError
from gncompile.frontends.standardised import Standardised, means_and_scales
from gncompile.losses import standardised
from gncompile.losses.standardising import is_of_differences

ROUNDING = 1e-11
"""Relative difference of losses in float64 after a few steps, each of which multiplies roundings."""


def table() -> tuple[Tensor, Tensor]:
    """Columns of scales from 0.01 to 1000, far from zero."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(120, 4, generator=draw, dtype=torch.float64)
    x = x * torch.tensor([1, 100, 0.01, 5]).double() + torch.tensor([3, 0, 1, -700]).double()
    y = torch.stack([x[:, 0] ** 2 + x[:, 1], 1e3 * x[:, 2].sin() + x[:, 3]], dim=1)
    return x, y


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


@pytest.mark.parametrize(
    ("loss", "method"),
    [("mse", "kfra"), ("mse", "kfac"), ("mse", "adam"), (nn.HuberLoss(), "kfra"), ("log_cosh", "kflr")],
    ids=str,
)  # fmt: skip
def test_it_trains_as_on_standardised_data(loss: str | nn.Module, method: str) -> None:
    x, y = table()
    (mean_x, scale_x), (mean_y, scale_y) = means_and_scales(x), means_and_scales(y)
    model = Standardised.of(network(), x, y)
    inside = gncompile.compile(model, standardised(loss, scale_y), x, method=method)
    outside = gncompile.compile(network(), loss, x, method=method)
    plain = (x - mean_x) / scale_x, (y - mean_y) / scale_y
    for _ in range(4):
        a, b = inside.step(x, y).loss, outside.step(*plain).loss
        assert a == pytest.approx(b, rel=ROUNDING)
    torch.testing.assert_close(inside.predict(x), model(x), rtol=ROUNDING, atol=0)
    predicted = mean_y + scale_y * outside.predict(plain[0])
    torch.testing.assert_close(inside.predict(x), predicted, rtol=1e-9, atol=1e-9)


def test_its_rules_and_its_checkpoint(tmp_path: Path) -> None:
    x, y = table()
    loss = standardised("huber", means_and_scales(y)[1])
    assert gncompile.verify(Standardised.of(network(), x, y), loss, x).ok
    trainer = gncompile.compile(Standardised.of(network(), x, y), loss, x)
    trainer.step(x, y)
    trainer.save(tmp_path / "a")
    other = gncompile.Trainer.resume(tmp_path / "a", Standardised.of(network(), x, y))
    assert other.step(x, y).loss == trainer.step(x, y).loss


def test_scales_of_columns() -> None:
    x = torch.tensor([[1.0, 7.0, 1e8 + 1], [3.0, 7.0, 1e8 - 1]], dtype=torch.float64)
    mean, scale = means_and_scales(x)
    assert mean.tolist() == [2.0, 7.0, 1e8]
    assert scale.tolist() == [1.0, 1.0, 1.0]
    _, scale = means_and_scales(torch.full((10, 1), 0.1))  # whose mean is not 0.1 to the bit
    assert scale.item() == 1.0
    model = Standardised.of(nn.Linear(3, 2), x)
    assert {name: tuple(b.shape) for name, b in model.named_buffers()} == {
        "input_mean": (3,),
        "input_scale": (3,),
        "output_mean": (1,),
        "output_scale": (1,),
    }
    assert model.input_mean.dtype is torch.float32


@pytest.mark.parametrize(
    ("scales", "expected"),
    [({"input_scale": [0.0]}, "scales above 0"), ({"output_mean": [float("nan")]}, "output_mean")],
)
def test_numbers_that_cannot_be_scales(scales: dict[str, list[float]], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        Standardised(nn.Linear(1, 1), **scales)  # type: ignore[arg-type]


def test_one_mean_for_each_output() -> None:
    """They would be added to every output in turn, and make more of one."""
    with pytest.raises(DataError, match=r"\[2\] means for samples of \[1\] outputs"):
        Standardised(nn.Linear(1, 1), output_mean=[0.0, 1.0])(torch.zeros(3, 1))


def test_samples_without_a_scale() -> None:
    with pytest.raises(DataError, match="no finite means"):
        means_and_scales(torch.zeros(0, 3))
    with pytest.raises(DataError, match="no finite means"):
        means_and_scales(torch.tensor([[1.0], [float("inf")]]))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits", "exp(z) - y*z"])
def test_losses_without_units(loss: str) -> None:
    with pytest.raises(LossError, match="not one of the differences"):
        standardised(loss, torch.ones(2))


@pytest.mark.parametrize(
    "loss", ["mse", "huber", "smooth_l1", "log_cosh", "(z - y)**2 + (z - y)**4"]
)
def test_it_stays_a_loss_of_differences_and_is_standardised_once(loss: str) -> None:
    once = standardised(loss, torch.tensor([2.0, 3.0]))
    assert is_of_differences(once)
    with pytest.raises(LossError, match="not one of the differences"):
        standardised(once, torch.ones(2))
