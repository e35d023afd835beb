"""The data of a model file, held against its network and its loss before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..data.data_sets import DataSplit
from ..errors import BatchError, ModelFileError, expected_got, message
from ..losses.targets import tensors_of
from ..losses.vocabulary import resolve_loss
from ..losses.weighting import bind_loss
from .model_file import ModelFile
from .network_schema import Layers

RANGES: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "bce_with_logits": ("from 0 to 1", lambda y: (y >= 0) & (y <= 1)),
    "poisson_nll": ("0 or greater", lambda y: y >= 0),
    "soft_margin": ("-1 or 1", lambda y: y.abs() == 1),
}
"""Targets that a loss by name is made for, and whether they are some.

torch computes it of others, too, but then it has no lower bound, or, of the margin of a target 0, no slope.
"""


def load_data(file: ModelFile) -> DataSplit:
    """The data of a model file; :class:`~gncompile.errors.ModelFileError` unless the network fits them."""
    data, schema = file.split, file.schema
    if file.input_size != file.inputs_wanted:
        categories = len(schema.categories)
        beside = f", {categories} of them categories, embedded" if categories else ""
        wanted = f"{file.inputs_wanted} inputs ({len(schema.numeric) + categories} columns{beside})"
        raise ModelFileError(
            "the network does not fit the data\n"
            + expected_got(
                f"{file.inputs_wanted} inputs" if schema.archive else wanted, f"{file.input_size}"
            ),
            where=str(file.path),
            instead=_fitting(file, f"the first of layers to {file.inputs_wanted}"),
        )
    held = () if data.validation is None else (("validation", data.validation_y),)
    for part, y in (("training", data.train_y), *held):
        _require_range(file, part, tensors_of(y)[0])
        # The loss as declared first: what stands in the file is what an error can speak of.
        for spec, targets in ((file.declared_loss, tensors_of(y)[0]), (file.loss, y)):
            loss = bind_loss(resolve_loss(spec), (file.output_size,))
            shape = len(tensors_of(y)[0]), file.output_size
            try:
                loss.check_target(shape, file.dtype, targets)
            except BatchError as error:
                raise ModelFileError(_misfit(file, part, y, error)) from None
    return data


def _require_range(file: ModelFile, part: str, y: Tensor) -> None:
    """The targets are ones that the loss is made for."""
    name = file.declared_loss
    if not isinstance(name, str) or name not in RANGES or not y.is_floating_point():
        return
    expected, fits = RANGES[name]
    if not fits(y).all():
        low, high = torch.aminmax(y)
        raise ModelFileError(
            f"the loss {name!r} is not made for these {part} targets\n"
            + expected_got(f"numbers {expected}", f"numbers from {low:g} to {high:g}"),
            where=f"[loss] and targets of {file.path}",
            instead="change the numbers in the file, or use another loss, as mse",
        )


def _fitting(file: ModelFile, change: str) -> str:
    """How the network's sizes may be made to fit."""
    if isinstance(file.network, Layers):
        hidden = list(file.network.hidden_sizes)
        return f"change {change} in [network], or give hidden = {hidden} in place of layers"
    return f"write input_size = {file.inputs_wanted} in [network], or leave it out"


def _misfit(file: ModelFile, part: str, y: Any, error: BatchError) -> str:
    """Why the loss cannot take these targets, in terms of the model file."""
    values: Tensor = tensors_of(y)[0]
    kind = "labels" if not values.is_floating_point() else f"{values.shape[1]} numbers a sample"
    first = str(error).split("\n  where:")[0].split("\n  what to do:")[0]
    whole = values.is_floating_point() and values.shape[1] == 1
    whole = whole and bool((values == values.round()).all())
    labels = 'write target = "label" in [data], if these are class numbers; or ' if whole else ""
    return message(
        f"the loss cannot take the {part} targets, {kind}, of a network with {file.output_size} outputs\n"
        + first,
        where=str(file.path),
        instead=f"{labels}change the last of layers, or the last node, in [network], to "
        f"{file.outputs_wanted}; or change target or targets in [data], or [loss]",
    )
