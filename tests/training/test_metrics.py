"""Metrics of validation data, against their formulas written out and scikit-learn's own data."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from training import batches, compiled, network, samples

import gncompile
from gncompile.errors import GncompileError, MetricWarning
from gncompile.losses import resolve_loss, weighted
from gncompile.losses.weighting import bind_loss
from gncompile.training.metrics import Metric, higher_is_better, metric_values, resolve_metrics

GENERATOR = torch.Generator().manual_seed(4)
Z = torch.randn(40, 3, generator=GENERATOR)
Y = torch.randn(40, 3, generator=GENERATOR)
CLASSES = torch.randint(3, (40,), generator=GENERATOR)
YES = (torch.rand(40, 3, generator=GENERATOR) > 0.5).float()
WEIGHTS = torch.randint(4, (40,), generator=GENERATOR).float()


def values(loss: Any, z: Any, y: Any, *names: str) -> dict[str, float]:
    known = resolve_loss(loss)
    return metric_values(names, z, y, bind_loss(known, tuple(z.shape[1:])))


def written_out(predicted: Tensor, y: Tensor, w: Tensor | None = None) -> dict[str, float]:
    """The formulas of the module's docstring."""
    p, y = predicted.double(), y.double()
    w = (torch.ones(len(y)) if w is None else w).double()[:, None]
    error = p - y
    mean = (w * y).sum(0) / w.sum()
    r2 = 1 - (w * error**2).sum(0) / (w * (y - mean) ** 2).sum(0)
    columns = y.shape[1]
    return {
        "r2": float(r2.mean()),
        "rmse": math.sqrt((w * error**2).sum() / (w.sum() * columns)),
        "mae": float((w * error.abs()).sum() / (w.sum() * columns)),
    }


@pytest.mark.parametrize(
    ("loss", "predicted", "y"),
    [
        ("mse", Z, Y),
        (nn.HuberLoss(), Z, Y),
        ("log_cosh", Z, Y),
        ("poisson_nll", Z.double().exp(), Y.abs()),
        ("exp(z) - y*z", Z.double().exp(), Y.abs()),
        ("bce_with_logits", torch.sigmoid(Z.double()), YES),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), torch.sigmoid(Z.double()), YES),
    ],
)
def test_of_numbers(loss: Any, predicted: Tensor, y: Tensor) -> None:
    got = values(loss, Z, y, "r2", "rmse", "mae")
    assert got == pytest.approx(written_out(predicted, y), rel=1e-6)


def test_weights_count_and_hide() -> None:
    y = Y.clone()
    y[WEIGHTS == 0] = math.nan
    got = values(weighted("mse"), Z, (y, WEIGHTS), "r2", "rmse", "mae")
    counts = WEIGHTS > 0
    assert got == pytest.approx(written_out(Z[counts], Y[counts], WEIGHTS[counts]), rel=1e-6)
    right = (Z.argmax(1) == CLASSES).float()
    got = values(weighted("cross_entropy"), Z, (CLASSES, WEIGHTS), "accuracy")
    assert got["accuracy"] == pytest.approx(float((WEIGHTS * right).sum() / WEIGHTS.sum()))


@pytest.mark.parametrize("soft", [False, True])
def test_of_classes(soft: bool) -> None:
    y = nn.functional.one_hot(CLASSES, 3).float() * 0.8 + 0.1 / 1.5 if soft else CLASSES
    got = values("cross_entropy", Z, y, "accuracy", "auc")
    assert got["accuracy"] == pytest.approx(float((Z.argmax(1) == CLASSES).float().mean()))
    p = torch.softmax(Z.double(), 1)
    expected = roc_auc_score(CLASSES.numpy(), p / p.sum(1, keepdim=True), multi_class="ovr")
    assert got["auc"] == pytest.approx(expected)


def test_of_two_classes() -> None:
    z, y = Z[:, :2], CLASSES.clamp(max=1)
    got = values("cross_entropy", z, y, "accuracy", "auc")
    score = (z[:, 1] - z[:, 0]).double()
    # The share of pairs of a positive and a negative that are in order.
    order = (score[y == 1][:, None] > score[y == 0][None, :]).double().mean()
    assert got["auc"] == pytest.approx(float(order))
    one = values(
        "bce_with_logits", (z[:, 1] - z[:, 0])[:, None], y[:, None].float(), "accuracy", "auc"
    )
    assert one == pytest.approx(got)
    signs = values(
        "soft_margin", (z[:, 1] - z[:, 0])[:, None], 2 * y[:, None].float() - 1, "accuracy", "auc"
    )
    assert signs == pytest.approx(got)


def test_of_places_and_ignored_ones() -> None:
    z = torch.randn(6, 3, 5, generator=GENERATOR)
    y = torch.randint(3, (6, 5), generator=GENERATOR)
    y[0, :3] = -100
    got = values(nn.CrossEntropyLoss(), z, y, "accuracy")["accuracy"]
    counts = y != -100
    assert got == pytest.approx(float((z.argmax(1) == y)[counts].float().mean()))


def test_of_several_answers() -> None:
    got = values("bce_with_logits", Z, YES, "accuracy", "auc")
    assert got["accuracy"] == pytest.approx(float(((Z > 0) == (YES > 0.5)).float().mean()))
    each = [roc_auc_score(YES[:, j], Z[:, j]) for j in range(3)]
    assert got["auc"] == pytest.approx(np.mean(each))


def test_what_is_undefined_is_said_once() -> None:
    (auc,) = resolve_metrics(["auc"], resolve_loss("cross_entropy"))
    with pytest.warns(MetricWarning, match="auc is undefined"):
        assert math.isnan(auc(Z, CLASSES * 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(auc(Z, CLASSES * 0))
        assert math.isnan(auc(Z * math.nan, CLASSES))


@pytest.mark.parametrize(
    ("loss", "metrics", "found"),
    [
        ("mse", ["acuracy"], "unknown metric 'acuracy'. Did you mean 'accuracy'"),
        ("mse", ["accuracy"], "'accuracy' is for one cross-entropy or binary loss, this is 'mse'"),
        ("cross_entropy", "rmse", "'rmse' is for one loss of numbers"),
        ("(z-y)**2 + exp(z)", ["r2"], "'r2' is for one loss of numbers"),
        ("mse", ["r2", "r2"], "two values are named 'r2'"),
        ("mse", [Metric("loss", lambda z, y: 0.0)], "two values are named 'loss'"),
        ("mse", 3, "unknown metric 3"),
        ("mse", [None], "unknown metric None"),
    ],
)
def test_impossible_metrics(loss: str, metrics: Any, found: str) -> None:
    with pytest.raises(GncompileError, match=found):
        resolve_metrics(metrics, resolve_loss(loss))


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from gncompile.training import metrics

    metrics._sklearn.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "sklearn.metrics", None)
    with pytest.raises(GncompileError, match=r"pip install 'gncompile\[metrics\]'"):
        resolve_metrics(["r2"], resolve_loss("mse"))
    own = resolve_metrics([lambda z, y: 1.0], resolve_loss("mse"))
    assert own[0](Z, Y) == 1.0


def test_a_metric_is_a_number() -> None:
    each = gncompile.Metric("each", lambda z, y: (z - y).abs())
    with pytest.raises(GncompileError, match=r"'each' gives a tensor of shape \[3, 1\], not a num"):
        each(torch.zeros(3, 1), torch.ones(3, 1))


def test_an_object_may_tell_its_direction() -> None:
    """As those of torchmetrics do."""

    class Squares:
        higher_is_better = False

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return ((outputs - targets) ** 2).mean()

    (metric,) = resolve_metrics(Squares(), resolve_loss("mse"))
    assert (metric.name, metric.higher_is_better) == ("Squares", False)
    assert metric(Z, Y) == pytest.approx(float(((Z - Y) ** 2).mean()))


def test_a_fit_records_them_of_all_validation_data() -> None:
    trainer = compiled(network())
    x, y = samples(33, seed=3)
    targets: list[Tensor] = []

    def worst(outputs: Tensor, target: Tensor) -> Tensor:
        targets.append(target)
        return (torch.sigmoid(outputs) - target).abs().max()

    loader = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 33, 10)]
    history = trainer.fit(
        batches(), updates=6, validation=loader, validate_every=3, progress=False,
        metrics=["rmse", gncompile.Metric("worst", worst)],
    )  # fmt: skip
    assert history.rmse[:2] == [None, None]
    assert [bool(m) for m in history.metrics] == [False, False, True] * 2
    z = trainer.predict(x)
    assert isinstance(z, Tensor)
    assert torch.equal(targets[-1], y)
    error = torch.sigmoid(z) - y
    assert history[-1].metrics == pytest.approx({
        "rmse": float((error**2).mean().sqrt()), "worst": float(error.abs().max()),
    })  # fmt: skip


def test_more_is_better_but_of_errors() -> None:
    names = "accuracy", "auc", "r2", "rmse", "mae", "validation_loss"
    assert [*map(higher_is_better, names)] == [True, True, True, False, False, False]
