"""The losses that ``torch.nn`` modules compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from typing import Any, Literal

import sympy
from torch import nn

from ..errors import LossError
from . import formulas
from .cross_entropy import UNMARKED
from .loss_scale import Scale
from .loss_types import Loss, SeparableLoss, SoftmaxCrossEntropy
from .per_output import PerOutput

_FLAT = (
    "it is linear in the output between its kinks: a zero output Hessian, so a Gauss-Newton method has "
    "nothing to use"
)
_PAIRS = (
    "it compares several outputs of a sample and is not convex in them; write what is convex as an "
    "expression in z1, z2, … with gncompile.register_loss"
)
_OWN = "put a linear layer into the model and use nn.CrossEntropyLoss: the loss has parameters of its own"

_ADVICE: dict[type, str] = {
    nn.BCELoss: "drop the model's final sigmoid and use nn.BCEWithLogitsLoss",
    nn.NLLLoss: "drop the model's final log-softmax and use nn.CrossEntropyLoss",
    nn.KLDivLoss: "drop the model's final log-softmax and use nn.CrossEntropyLoss with probabilities as "
    "targets (log_target=True: their exponential), which differs by a constant, the targets' entropy",
    nn.L1Loss: "use nn.HuberLoss or nn.SmoothL1Loss: the absolute error has a zero output Hessian, "
    "so a Gauss-Newton method has nothing to use",
    nn.HingeEmbeddingLoss: f"use nn.SoftMarginLoss: {_FLAT}",
    nn.MultiMarginLoss: "use nn.CrossEntropyLoss: with p=1 it has a zero output Hessian, so a Gauss-Newton "
    "method has nothing to use, and p=2 has no rule",
    nn.MultiLabelMarginLoss: f"use nn.MultiLabelSoftMarginLoss: {_FLAT}",
    nn.MarginRankingLoss: f"return the difference of the two scores and use nn.SoftMarginLoss: {_FLAT}",
    nn.CosineEmbeddingLoss: _PAIRS,
    nn.TripletMarginLoss: _PAIRS,
    nn.TripletMarginWithDistanceLoss: _PAIRS,
    nn.CTCLoss: "use nn.CrossEntropyLoss on aligned targets: a sum over alignments is not convex in the "
    "output",
    nn.AdaptiveLogSoftmaxWithLoss: _OWN,
}
"""What to use in place of a loss that has no Gauss-Newton matrix to use, and why it has none."""

if hasattr(nn, "LinearCrossEntropyLoss"):  # not in every torch that is supported
    _ADVICE[nn.LinearCrossEntropyLoss] = _OWN

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where torch keeps what runs besides ``forward``; none of it would run in a compiled step."""


def loss_from_module(module: object) -> Loss:
    """Exactly the loss that a ``torch.nn`` loss module computes, its reduction included.

    Raises :class:`LossError` for a module or an option without an exact counterpart.
    """
    reader = _READERS.get(type(module))
    if reader is None:
        raise _unsupported(module)
    if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module):
        name = type(module).__name__
        raise LossError(
            f"nn.{name} has hooks or a forward of its own, which a compiled step does not run",
            where="the loss",
            instead=f"pass a new nn.{name}, or declare the loss: gncompile.loss_function",
        )
    return reader(module)


def supported_modules() -> Set[type]:
    """The ``torch.nn`` losses with an exact counterpart."""
    return _READERS.keys()


def refused_modules() -> Mapping[type, str]:
    """The other ``torch.nn`` losses, and what to do instead and why."""
    return _ADVICE


def _unsupported(module: object) -> LossError:
    found, advice = _described(module)
    return LossError(f"{found} is not a supported loss", where="the loss", instead=advice)


def _described(module: object) -> tuple[str, str]:
    """What was given in place of a loss, and what to do about it."""
    kind = module if isinstance(module, type) else type(module)
    parent = next((known for known in _READERS if issubclass(kind, known)), None)
    supported = ", ".join(f"nn.{known.__name__}" for known in _READERS)
    own = f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn") else repr(module)
    if isinstance(module, type):
        if kind in _READERS:
            return f"the class {own}", f"an instance is needed: {own}()"
        advice = f"use an instance of one of {supported}"
        return f"the class {own}", _ADVICE.get(kind, advice)
    if parent is not None:
        return own, (
            f"a subclass may compute anything; pass nn.{parent.__name__} itself, or an expression"
        )
    default = f"use one of {supported}, a name such as 'mse', or an expression in z and y"
    return own, _ADVICE.get(kind, default)


def _scale(
    module: Any,
    factor: float = 1.0,
    *,
    mean: Literal["samples", "elements", "targets"] = "elements",
) -> Scale:
    """The module's reduction; ``mean`` says what this kind of loss averages over."""
    if module.reduction == "mean":
        return Scale(factor, mean)
    if module.reduction == "sum":
        return Scale(factor, "sum")
    raise LossError(
        f"nn.{type(module).__name__} with reduction={module.reduction!r} returns no single "
        "number to minimise",
        where="the loss",
        instead="use reduction='mean' or reduction='sum'",
    )


def _mse(module: nn.MSELoss) -> Loss:
    half = formulas.half_squared_error()
    return SeparableLoss("MSELoss", half, sampler="normal", scale=_scale(module, 2.0))


def _bce(module: nn.BCEWithLogitsLoss) -> Loss:
    name, positive = "BCEWithLogitsLoss", module.pos_weight
    scale, weights = _scale(module), _weights(module)
    if positive is None:
        nll = formulas.bernoulli_nll()
        return SeparableLoss(name, nll, sampler="bernoulli", scale=scale, weights=weights)
    given = PerOutput.of(positive, f"the pos_weight of nn.{name}")
    return SeparableLoss(
        name,
        formulas.bernoulli_nll(sympy.Symbol("pos_weight", positive=True)),
        scale=scale,
        targets=(0.0, 1.0),
        weights=weights,
        constants=(("pos_weight", given),),
    )


def _multi_label(module: nn.MultiLabelSoftMarginLoss) -> Loss:
    scale = _scale(module)
    scale = Scale(over="outputs") if scale.over == "sum" else scale
    nll = formulas.bernoulli_nll()
    name = "MultiLabelSoftMarginLoss"
    return SeparableLoss(name, nll, sampler="bernoulli", scale=scale, weights=_weights(module))


def _weights(module: Any) -> PerOutput | None:
    """The module's ``weight``, of outputs or classes."""
    if module.weight is None:
        return None
    return PerOutput.of(module.weight, f"the weight of nn.{type(module).__name__}")


def _cross_entropy(module: nn.CrossEntropyLoss) -> Loss:
    if not 0 <= module.label_smoothing <= 1:
        raise _meaningless(module, "label_smoothing", "use a number between 0 and 1")
    weights = _weights(module)
    plain = weights is None and module.ignore_index == UNMARKED
    scale = _scale(module, mean="samples" if plain else "targets")
    return SoftmaxCrossEntropy(
        "CrossEntropyLoss", module.label_smoothing, scale, weights, module.ignore_index
    )


def _meaningless(module: nn.Module, option: str, instead: str) -> LossError:
    """A value of ``option`` with which torch's loss is an error, NaN or zero everywhere."""
    name, value = type(module).__name__, getattr(module, option)
    found = f"nn.{name} with {option}={value} is no loss to be minimised"
    return LossError(found, where="the loss", instead=instead)


def _huber(module: nn.HuberLoss) -> Loss:
    if not module.delta > 0:
        raise _meaningless(module, "delta", "use delta > 0")
    if math.isinf(module.delta):  # every distance lies below it
        half = formulas.half_squared_error()
        return SeparableLoss("HuberLoss", half, sampler="normal", scale=_scale(module))
    return SeparableLoss("HuberLoss", formulas.huber(float(module.delta)), scale=_scale(module))


def _smooth_l1(module: nn.SmoothL1Loss) -> Loss:
    if module.beta == 0:
        raise LossError(
            f"nn.SmoothL1Loss with beta={module.beta} is the absolute error, "
            "which has a zero output Hessian",
            where="the loss",
            instead="use beta > 0",
        )
    if not 0 < module.beta < math.inf:
        raise _meaningless(module, "beta", "use a finite beta > 0, or nn.MSELoss()")
    return SeparableLoss(
        "SmoothL1Loss", formulas.smooth_l1(float(module.beta)), scale=_scale(module)
    )


def _poisson(module: nn.PoissonNLLLoss) -> Loss:
    if not module.log_input:
        raise LossError(
            f"nn.PoissonNLLLoss with log_input={module.log_input} is not supported: it is not defined for "
            "every output",
            where="the loss",
            instead="use log_input=True, with a model that returns the log rate",
        )
    return SeparableLoss(
        "PoissonNLLLoss", formulas.poisson_nll(full=module.full), scale=_scale(module)
    )


def _gaussian(module: nn.GaussianNLLLoss) -> Loss:
    nll = formulas.gaussian_nll(module.eps, module.full)
    return SeparableLoss("GaussianNLLLoss", nll, scale=_scale(module), extras=("variance",))


def _soft_margin(module: nn.SoftMarginLoss) -> Loss:
    return SeparableLoss("SoftMarginLoss", formulas.soft_margin(), scale=_scale(module))


_READERS: dict[type, Callable[[Any], Loss]] = {
    nn.MSELoss: _mse,
    nn.BCEWithLogitsLoss: _bce,
    nn.CrossEntropyLoss: _cross_entropy,
    nn.HuberLoss: _huber,
    nn.SmoothL1Loss: _smooth_l1,
    nn.PoissonNLLLoss: _poisson,
    nn.SoftMarginLoss: _soft_margin,
    nn.MultiLabelSoftMarginLoss: _multi_label,
    nn.GaussianNLLLoss: _gaussian,
}

FUNCTIONS_OF_TORCH: dict[str, type] = {
    "mse_loss": nn.MSELoss,
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
    "binary_cross_entropy": nn.BCELoss,
    "cross_entropy": nn.CrossEntropyLoss,
    "nll_loss": nn.NLLLoss,
    "l1_loss": nn.L1Loss,
    "huber_loss": nn.HuberLoss,
    "smooth_l1_loss": nn.SmoothL1Loss,
    "poisson_nll_loss": nn.PoissonNLLLoss,
    "soft_margin_loss": nn.SoftMarginLoss,
    "multilabel_soft_margin_loss": nn.MultiLabelSoftMarginLoss,
    "gaussian_nll_loss": nn.GaussianNLLLoss,
    "kl_div": nn.KLDivLoss,
    "hinge_embedding_loss": nn.HingeEmbeddingLoss,
    "multi_margin_loss": nn.MultiMarginLoss,
    "multilabel_margin_loss": nn.MultiLabelMarginLoss,
    "margin_ranking_loss": nn.MarginRankingLoss,
    "cosine_embedding_loss": nn.CosineEmbeddingLoss,
    "triplet_margin_loss": nn.TripletMarginLoss,
    "triplet_margin_with_distance_loss": nn.TripletMarginWithDistanceLoss,
    "ctc_loss": nn.CTCLoss,
}
"""The loss module that computes the same as a function of ``torch.nn.functional``."""
