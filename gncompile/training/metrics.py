"""Metrics of predictions, by scikit-learn: ``accuracy``, ``auc``, ``r2``, ``rmse``, ``mae``; or a user's own.

What is compared with the targets y is what the loss takes the network's output z for::

    cross-entropy            p = softmax(z), the class is argmax z; soft targets count as their largest
    Bernoulli, soft margin   p = σ(z), the class is z > 0; y > ½ is the positive class (y > 0 of ±1)
    exponential families     ŷ = μ(z) where ∂e/∂z = μ(z) - y: z of mse, e^z of Poisson, σ(z) of Bernoulli
    distances e(z - y)       ŷ = z

    accuracy   Σ w [class = y] / Σ w                  of every output where they are several
    auc        area under the ROC curve of p; of several classes each against the rest, and their mean;
               of several outputs their mean
    r2         1 - Σ w (y - ŷ)² / Σ w (y - ȳ)²        the mean over outputs
    rmse       √(Σ w (y - ŷ)² / Σ w)                  over all outputs
    mae        Σ w |y - ŷ| / Σ w                      over all outputs

``w`` are the weights that come with the targets, 1 without; where one is 0, or a class is ``ignore_index``,
nothing counts. The loss's constant weights of classes and outputs do not enter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import GncompileError, MetricWarning, nearest, warn
from ..functions.expressions import evaluate
from ..losses.formulas import soft_margin
from ..losses.loss_types import OUTPUT, TARGET, Loss, SeparableLoss, SoftmaxCrossEntropy
from ..losses.sum_loss import SumLoss
from ..losses.targets import mapped, tensors_of
from .batches import Returned, Target, joined_targets
from .records import Record

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Metric:
    """A metric ``function(outputs, targets) -> float`` of the whole validation data, on the CPU.

    Outputs are as the model returns them and targets as the data gives them. ``higher_is_better`` is needed
    where early stopping or ``keep_best`` monitor it.

    >>> within = Metric("within", lambda z, y: ((z - y).abs() < 0.1).float().mean(), higher_is_better=True)
    >>> within(torch.zeros(4), torch.tensor([0.0, 0.05, 0.2, 1.0]))
    0.5
    """

    name: str
    function: Callable[[Any, Any], Any]
    higher_is_better: bool | None = None

    def __call__(self, outputs: Returned, targets: Target) -> float:
        """The value; NaN, with a warning, where it is undefined."""
        found = self.function(outputs, targets)
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise GncompileError(
                f"the metric {self.name!r} gives {_kind(found)}, not a number",
                where="metrics",
                instead="take a mean or a sum over everything",
            ) from error


def _kind(found: object) -> str:
    shape = getattr(found, "shape", None)
    return type(found).__name__ if shape is None else f"a tensor of shape {list(shape)}"


def resolve_metrics(given: object, loss: Loss) -> tuple[Metric, ...]:
    """The metrics that a user means: names, functions, :class:`Metric`, torchmetrics' objects.

    Raises :class:`~gncompile.errors.GncompileError` for an unknown name, one that does not fit the loss, two
    of the same name, and where scikit-learn is missing.
    """
    several = (given,) if isinstance(given, str) or callable(given) else given
    if not isinstance(several, Sequence):
        raise _unknown(given)
    metrics = tuple(_resolved(each, loss) for each in several)
    names = [metric.name for metric in metrics]
    taken = {*Record.__dataclass_fields__}
    for name in names:
        if name in taken or names.count(name) > 1:
            raise GncompileError(
                f"two values are named {name!r}",
                where="metrics",
                instead="give the metric another name: gncompile.Metric('another', function)",
            )
    return metrics


USUAL: Mapping[str, tuple[str, ...]] = {"label": ("accuracy",), "value": ("r2", "rmse")}
"""What is told of classes and of numbers where nobody says what."""


def usual_metrics(target: str, loss: Loss) -> tuple[str, ...]:
    """Those of :data:`USUAL` for targets of a kind; none where they do not fit the loss, or cannot be had."""
    names = USUAL.get(target, ())
    try:
        resolve_metrics(names, loss)
    except GncompileError:
        return ()
    return names


def metric_values(
    metrics: Sequence[str | Metric], outputs: Returned, targets: Target, loss: Loss
) -> dict[str, float]:
    """Metrics by name of ``outputs``, as the model returns them, and their ``targets``.

    >>> from gncompile.losses import resolve_loss
    >>> logits, classes = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])
    >>> metric_values(["auc"], logits, classes, resolve_loss("cross_entropy"))
    {'auc': 0.75}
    """
    return {m.name: m(outputs, targets) for m in resolve_metrics(metrics, loss)}


def _resolved(given: object, loss: Loss) -> Metric:
    if isinstance(given, Metric):
        return given
    if isinstance(given, str):
        if given not in _NAMED:
            raise _unknown(given)
        return Metric(given, _Named(given, loss), higher_is_better(given))
    if not callable(given):
        raise _unknown(given)
    name = getattr(given, "__name__", type(given).__name__)
    return Metric(str(name), given, getattr(given, "higher_is_better", None))


def _unknown(given: object) -> GncompileError:
    hint = nearest(given, _NAMED) if isinstance(given, str) else ""
    return GncompileError(
        f"unknown metric {given!r}. {hint}".rstrip(),
        where="metrics",
        instead=f"use some of {', '.join(_NAMED)}, functions of outputs and targets, or gncompile.Metric",
    )


# --- By name --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """Targets and predictions, a row a sample; classes have one column. Weights 0 do not count."""

    y: Array
    """Numbers, or whole numbers for classes."""
    predicted: Array
    """What is compared with them."""
    p: Array
    """Probabilities of classes, a column each; of the positive class, a column an output; or nothing."""
    weights: Array
    """Like ``y``."""

    @property
    def flat(self) -> tuple[Array, Array, Array]:
        """All that counts."""
        counts = self.weights > 0
        return self.y[counts], self.predicted[counts], self.weights[counts]

    def mean(self, score: Callable[[Array, Array, Array], float], of: Array) -> float:
        """The mean over columns of the score of what counts in them."""
        counts = self.weights > 0
        return float(np.mean([
            score(self.y[c, j], of[c, j], self.weights[c, j]) for j, c in enumerate(counts.T)
        ]))  # fmt: skip


def _accuracy(a: Answers) -> float:
    y, predicted, weights = a.flat
    return float(_sklearn().accuracy_score(y, predicted, sample_weight=weights))


def _auc(a: Answers) -> float:
    roc_auc = _sklearn().roc_auc_score
    if a.p.shape[1] <= 2 or a.y.shape[1] > 1:  # one answer each: yes or no
        p = a.p[:, -1:] if a.y.shape[1] == 1 else a.p
        return a.mean(lambda y, p, w: roc_auc(y, p, sample_weight=w), p)
    counts = a.weights[:, 0] > 0
    classes = range(a.p.shape[1])
    y, p, w = a.y[counts, 0], a.p[counts], a.weights[counts, 0]
    return float(np.mean([roc_auc(y == k, p[:, k], sample_weight=w) for k in classes]))


def _r2(a: Answers) -> float:
    return a.mean(lambda y, p, w: _sklearn().r2_score(y, p, sample_weight=w), a.predicted)


def _rmse(a: Answers) -> float:
    y, predicted, weights = a.flat
    return math.sqrt(_sklearn().mean_squared_error(y, predicted, sample_weight=weights))


def _mae(a: Answers) -> float:
    y, predicted, weights = a.flat
    return float(_sklearn().mean_absolute_error(y, predicted, sample_weight=weights))


_NAMED: Mapping[str, Callable[[Answers], float]] = {
    "accuracy": _accuracy, "auc": _auc, "r2": _r2, "rmse": _rmse, "mae": _mae,
}  # fmt: skip
_OF_CLASSES = "accuracy", "auc"
_ERRORS = "rmse", "mae"


def higher_is_better(name: str) -> bool:
    """Whether more is better of the metric ``name``; of ``"validation_loss"``, as of errors, it is not."""
    return name in _NAMED and name not in _ERRORS


class _Named:
    """A metric by name for one loss; that it is undefined is said once."""

    def __init__(self, name: str, loss: Loss) -> None:
        self._name, self._warned = name, False
        self._read = _reader(name, loss)
        _sklearn()

    def __call__(self, outputs: Returned, targets: Target) -> float:
        answers = self._read(outputs, targets)
        if not (np.isfinite(answers.p).all() and np.isfinite(answers.predicted).all()):
            return math.nan
        with (
            warnings.catch_warnings()
        ):  # scikit-learn warns at every call, and raises in some versions
            warnings.simplefilter("ignore")
            try:
                value = _NAMED[self._name](answers)
            except ValueError:
                value = math.nan
        if math.isnan(value) and not self._warned:
            self._warned = True
            warn(
                MetricWarning,
                f"{self._name} is undefined for these validation data, and is NaN",
                instead="give validation data with samples of every class (r2: with two samples or more)",
            )
        return value


def _reader(name: str, loss: Loss) -> Callable[[Returned, Target], Answers]:
    """How outputs and targets are read for a metric, or an error where it makes no sense."""
    if isinstance(loss, SoftmaxCrossEntropy) and name in _OF_CLASSES:
        return lambda z, y: _class_answers(loss, z, y)
    if isinstance(loss, SeparableLoss):
        signs = loss.expression == soft_margin()
        binary = loss.sampler == "bernoulli" or signs or "pos_weight" in dict(loss.constants)
        if binary and name in _OF_CLASSES:
            return lambda z, y: _binary_answers(loss, z, y, 0.0 if signs else 0.5)
        mean = torch.sigmoid if binary and not signs else mean_of(loss)
        if mean is not None and name not in _OF_CLASSES:
            return lambda z, y: _number_answers(loss, mean, z, y)
    several = isinstance(loss, SumLoss)
    kinds = "one cross-entropy or binary loss" if name in _OF_CLASSES else "one loss of numbers"
    raise GncompileError(
        f"the metric {name!r} is for {kinds}, this is {loss.name!r}",
        where="metrics",
        instead="give a function of all outputs and targets"
        if several
        else f"use {' or '.join(n for n in _NAMED if (n in _OF_CLASSES) != (name in _OF_CLASSES))}, or "
        "give a function of outputs and targets",
    )


def mean_of(loss: SeparableLoss) -> Callable[[Tensor], Tensor] | None:
    """The prediction of an output, see the module's docstring; None where the loss does not tell it."""
    if not loss.expression.subs(OUTPUT, TARGET + OUTPUT).has(TARGET):
        return lambda z: z
    mean = (loss.slope + TARGET).expand()
    if mean.free_symbols == {OUTPUT}:
        return lambda z: evaluate(mean, {OUTPUT: z})
    return None


def _apart(loss: SeparableLoss | SoftmaxCrossEntropy, target: Target) -> tuple[Tensor, Tensor]:
    """Targets on the CPU, and their weights, which have leading dimensions of the outputs."""
    tensors = [t.detach().cpu() for t in tensors_of(target)]
    y = tensors[0]
    return y, tensors[-1].double() if loss.weighted else torch.ones(len(y), dtype=torch.float64)


def _like(weights: Tensor, shape: torch.Size) -> Tensor:
    return weights.reshape(*weights.shape, *[1] * (len(shape) - weights.dim())).expand(shape)


def _class_answers(loss: SoftmaxCrossEntropy, outputs: Tensor, target: Target) -> Answers:
    """Of every place of every sample."""
    y, weights = _apart(loss, target)
    z = outputs.double().movedim(1, -1)
    y = y.argmax(dim=1) if y.dim() == outputs.dim() else y
    weights = _like(weights, y.shape)
    if loss.ignore_index is not None:
        weights = weights.masked_fill(y == loss.ignore_index, 0.0)
    columns = (y, z.argmax(dim=-1), torch.softmax(z, dim=-1), weights)
    width = 1, 1, z.shape[-1], 1
    return Answers(*(c.reshape(-1, w).numpy() for c, w in zip(columns, width, strict=True)))


def _binary_answers(
    loss: SeparableLoss, outputs: Tensor, target: Target, threshold: float
) -> Answers:
    y, weights = _apart(loss, target)
    z = outputs.double().flatten(1)
    y, weights = (each.flatten(1) for each in (y, _like(weights, y.shape)))
    answers = (y > threshold, z > 0, torch.sigmoid(z), weights)
    return Answers(*(each.numpy() for each in answers))


def _number_answers(
    loss: SeparableLoss, mean: Callable[[Tensor], Tensor], outputs: Tensor, target: Target
) -> Answers:
    y, weights = _apart(loss, target)
    z = mean(outputs.double()).flatten(1)
    y, weights = (each.double().flatten(1) for each in (y, _like(weights, y.shape)))
    return Answers(y.numpy(), z.numpy(), np.empty(0), weights.numpy())


@cache
def _sklearn() -> Any:
    try:
        import sklearn.metrics
    except ImportError as error:
        raise GncompileError(
            "metrics by name are computed by scikit-learn, which is not installed",
            where="metrics",
            instead="pip install 'gncompile[metrics]', or give a function of outputs and targets",
        ) from error
    return sklearn.metrics


class Collected:
    """Outputs and targets of a data set, put together for its metrics."""

    def __init__(self) -> None:
        self._outputs: list[Returned] = []
        self._targets: list[Target] = []

    def see(self, outputs: Returned, targets: Target) -> None:
        """Keep some samples."""
        self._outputs.append(outputs)
        self._targets.append(mapped(lambda each: each.detach().cpu(), targets))

    def values(self, metrics: Sequence[Metric]) -> dict[str, float]:
        """The metrics of all samples."""
        outputs, targets = joined_targets(self._outputs), joined_targets(self._targets)
        return {metric.name: metric(outputs, targets) for metric in metrics}
