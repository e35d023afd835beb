"""The bias of a network's last layer at the best constant prediction.

Without it the first updates of a deep network go into this constant, through all layers, and the layers'
activations lose what tells one sample from another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import ModelFileError
from ..frontends.model_file import ModelFile


def set_output_bias(file: ModelFile, model: nn.Module, targets: Tensor) -> None:
    """Set the last layer's bias to the constant output with the lowest loss on ``targets``.

    Probabilities are smoothed by half an observation, so that they are never 0 or 1. Raises
    :class:`~gncompile.errors.ModelFileError` where the file's loss has no such formula here, or the network
    does not end with a linear node with a bias and no transfer function.
    """
    constant = CONSTANTS.get(file.sections.loss.name or "")
    if constant is None:
        raise ModelFileError(
            f'output_bias = "mean" is not known for the loss {file.sections.loss.text!r}',
            where=f"[training] of {file.path}",
            instead=f"leave it out, or use one of {', '.join(CONSTANTS)}",
        )
    last = file.nodes[-1].name
    layer, function = dict(model.named_children()).get(last), file.functions.get(last)
    linear = function is None or function.is_identity
    if not linear or not isinstance(layer, nn.Linear) or layer.bias is None:
        raise ModelFileError(
            'output_bias = "mean" needs a linear output with a bias',
            where=f"node {last!r} of {file.path}",
            instead='leave it out, or end the network with transfer = "identity"',
        )
    with torch.no_grad():
        layer.bias.copy_(constant(targets, layer.out_features))


def _mean(targets: Tensor, outputs: int) -> Tensor:
    return targets.double().mean(dim=0)


def _logit(targets: Tensor, outputs: int) -> Tensor:
    return torch.logit((targets.double().sum(dim=0) + 0.5) / (len(targets) + 1))


def _log_frequency(targets: Tensor, outputs: int) -> Tensor:
    return torch.log(torch.bincount(targets, minlength=outputs).double() + 0.5)


CONSTANTS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "mse": _mean,
    "bce_with_logits": _logit,
    "cross_entropy": _log_frequency,
}
