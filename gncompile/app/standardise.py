"""``compile(..., standardise=...)``: a model in the data's own units, trained in standardised ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import CompileError
from ..frontends.standardised import Standardised
from ..losses.standardising import standardised
from ..losses.vocabulary import LossSpec

Standardise = bool | tuple[Tensor, Tensor]


def standardised_model(
    model: nn.Module, loss: LossSpec, example_inputs: Any, standardise: Standardise
) -> tuple[nn.Module, LossSpec]:
    """``model`` within a :class:`Standardised`, and the loss of standardised targets where these are given.

    Raises :class:`~gncompile.errors.CompileError` for samples that tell no scales.
    """
    pair = isinstance(standardise, tuple | list) and len(standardise) == 2
    if standardise is not True and not pair:
        raise CompileError(
            f"standardise is {type(standardise).__name__}",
            instead="pass True, which takes the inputs' means and scales from example_inputs, or a pair "
            "(x, y) of training data for the targets' too",
        )
    if not isinstance(standardise, tuple | list):
        return Standardised.of(model, _samples("example_inputs", example_inputs)), loss
    x, y = standardise
    x, y = _samples("the inputs of standardise", x), _samples("the targets of standardise", y)
    wrapper = Standardised.of(model, x, y)
    return wrapper, standardised(loss, wrapper.output_scale)


def _samples(what: str, samples: object) -> Tensor:
    """``samples`` if means and scales can be taken from them; one input may stand in a tuple."""
    if isinstance(samples, tuple | list) and len(samples) == 1:
        samples = samples[0]
    found = None
    if not isinstance(samples, Tensor):
        found = f"{what} are of type {type(samples).__name__}"
    elif not samples.is_floating_point():
        found = f"{what} hold {str(samples.dtype).removeprefix('torch.')}"
    elif samples.dim() < 1 or len(samples) < 2 or bool((samples == samples[:1]).all()):
        found = f"{what} are of shape {list(samples.shape)}, and all samples are equal"
    if found:
        raise CompileError(
            f"{found}: they tell no means and scales",
            instead="pass one tensor [N, ...] of many training samples, in floating point numbers; a model "
            "of several inputs may have a gncompile.Standardised around the part that reads them",
        )
    assert isinstance(samples, Tensor)
    return samples
