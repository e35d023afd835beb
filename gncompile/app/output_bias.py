"""The bias of a network's last layer at the best constant prediction.

Without it the first updates of a deep network go into this constant, through all layers, and the layers'
activations lose what tells one sample from another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelFileError
from ..frontends.model_file import ModelFile
from ..frontends.table_network import TableNetwork
from ..losses.targets import tensors_of
from ..losses.vocabulary import resolve_loss


def set_output_bias(file: ModelFile, model: nn.Module, targets: Any) -> None:
    """Set the last layer's bias to the constant output with the lowest loss on ``targets``.

    Probabilities are smoothed by half an observation, so that they are never 0 or 1. ``targets`` may be a
    pair ``(y, weights [N])``. Raises :class:`~gncompile.errors.ModelFileError` where the file's loss has no
    such formula here, or the network does not end with a linear node with a bias and no transfer function.
    """
    loss = resolve_loss(file.loss)
    constant = CONSTANTS.get(loss.name)
    if constant is None:
        raise ModelFileError(
            f'output_bias = "mean" is not known for the loss {loss.name!r}',
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
    y, *weights = tensors_of(targets)
    w = weights[0].double() if weights else torch.ones(len(y), dtype=torch.float64)
    best = constant(y, w, layer.out_features).to(layer.bias.device)
    if isinstance(model, TableNetwork) and model.units:
        best = (best - model.output_mean) / model.output_scale
    with torch.no_grad():
        layer.bias.copy_(best)


def _mean(y: Tensor, w: Tensor, outputs: int) -> Tensor:
    return (w @ y.double()) / w.sum()


def _logit(y: Tensor, w: Tensor, outputs: int) -> Tensor:
    return torch.logit((w @ y.double() + 0.5) / (w.sum() + 1))


def _log_frequency(y: Tensor, w: Tensor, outputs: int) -> Tensor:
    return torch.log(torch.bincount(y, w, minlength=outputs) + 0.5)


CONSTANTS: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "mse": _mean,
    "bce_with_logits": _logit,
    "cross_entropy": _log_frequency,
}
