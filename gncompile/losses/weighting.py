"""A loss made for a network: bound to its outputs, and with weights that come with each batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from ..errors import LossError
from .loss_scale import Over, Scale
from .loss_types import Loss, SeparableLoss, SoftmaxCrossEntropy
from .sum_loss import Outputs, SumLoss
from .vocabulary import LossSpec, resolve_loss

NORMALIZED: Mapping[Over, Over] = {
    "samples": "sample weights",
    "elements": "weights",
}


VARIANCE_PREDICTED = (
    "pass the variances with the targets, (y, variance). Where the network predicts them the loss is not "
    "convex: return mean and log-variance in one tensor [N, 2], and leave its negative curvature out: "
    "gncompile.register_loss(name, 'exp(-z2)*(z1 - y1)**2/2 + z2/2', negative_curvature='clip')"
)


def with_weights(loss: Loss, normalize: bool) -> Loss:
    """The loss whose targets are ``(y, w)``; see :func:`gncompile.losses.weighted`."""
    if isinstance(loss, SumLoss):
        raise LossError(
            "the losses of several outputs have no common weights",
            where="the loss",
            instead="put weighted(...) around each of them",
        )
    if loss.weighted:
        raise LossError(
            f"the loss {loss.name!r} has weights already",
            where="the loss",
            instead="use weighted(...) once, and multiply the weights",
        )
    over: Over = loss.scale.over
    if isinstance(loss, SoftmaxCrossEntropy) and loss.as_torch and over in ("samples", "targets"):
        over = "elements"
    if normalize:
        if over not in NORMALIZED:
            raise LossError(
                f"the loss {loss.name!r} is a sum over samples, which does not divide by weights",
                where="the loss",
                instead="leave normalize=True out, or use reduction='mean'",
            )
        over = NORMALIZED[over]
    return replace(loss, weighted=True, scale=Scale(loss.scale.factor, over))


def bind_loss(loss: Loss, shape: tuple[int, ...], outputs: Outputs = ()) -> Loss:
    """``loss`` for a network's output of this per-sample ``shape``, or for its several ``outputs``.

    Raises :class:`LossError` where it does not fit.
    """
    if isinstance(loss, SumLoss):
        return loss.bound(outputs)
    if outputs:
        raise LossError(
            f"the network returns {len(outputs)} outputs, the loss {loss.name!r} is for one",
            where="the loss",
            instead=VARIANCE_PREDICTED
            if loss.name == "GaussianNLLLoss"
            else "give a dict of losses by the outputs' names, or a list of them",
        )
    return loss.bound(shape)


def output_shape(loss: Loss, size: int) -> tuple[int, ...]:
    """The per-sample shape of ``size`` flat outputs as a bound loss sees them."""
    if isinstance(loss, SoftmaxCrossEntropy) and loss.places:
        return (loss.classes, *loss.places)
    return (size,)


def needs_all_outputs(loss: Loss) -> bool:
    """Whether a bound loss makes no sense of fewer outputs."""
    if isinstance(loss, SeparableLoss):
        return bool(loss.weights or loss.constants)
    if isinstance(loss, SoftmaxCrossEntropy):
        return bool(loss.class_weights or loss.places)
    return True


def weighted(loss: LossSpec, *, normalize: bool = False) -> Loss:
    """``loss`` with weights that come with each batch: targets are then pairs, ``trainer.step(x, (y, w))``.

    With ``l`` the values of ``loss`` one by one, as torch's ``reduction="none"`` gives them, the objective is

        (w * l).mean()            as Keras's sample_weight, the loss's own mean kept; or (w * l).sum()
        (w * l).sum() / w.sum()   with normalize=True: a mean over what is not masked

    ``w`` is ``[N]``, or has the leading dimensions of ``l``: ``[N, T]`` for ``l [N, T, D]`` say. A
    cross-entropy has one value a place, a named loss such as ``"mse"`` averages over samples only, and its
    weights of elements are divided by their sum over samples and mean over elements. A weight of 0 masks:
    what the target is there does not matter, be it NaN. A ``torch.nn`` loss may say ``reduction="none"``,
    which means the same as ``"mean"`` here.

    Raises :class:`LossError` for ``normalize`` of a sum over samples, and what :func:`resolve_loss` raises;
    a batch whose weights are negative or not finite is refused (:class:`BatchError`).

    >>> weighted("mse").describe().split(", ")[-1]
    'times the weights of the batch'
    """
    if getattr(loss, "reduction", "") == "none":
        loss = copy.copy(loss)
        loss.reduction = "mean"
    return with_weights(resolve_loss(loss), normalize)
