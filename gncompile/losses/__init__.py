"""Losses as mathematics, and the vocabulary of their names."""

from .loss_scale import Scale
from .standardising import standardised
from .vocabulary import (
    NOISE,
    OUTPUT,
    TARGET,
    CoupledLoss,
    Loss,
    SeparableLoss,
    SoftmaxCrossEntropy,
    SumLoss,
    define_loss,
    loss_function,
    loss_names,
    register_loss,
    resolve_loss,
)
from .weighting import bind_loss, weighted

__all__ = [
    "NOISE",
    "OUTPUT",
    "TARGET",
    "CoupledLoss",
    "Loss",
    "Scale",
    "SeparableLoss",
    "SoftmaxCrossEntropy",
    "SumLoss",
    "bind_loss",
    "define_loss",
    "loss_function",
    "loss_names",
    "register_loss",
    "resolve_loss",
    "standardised",
    "weighted",
]
