"""Operators that move features or map them linearly, learnt by running them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from .constants import concrete, run
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .probing import (
    LARGE_MATRIX,
    LARGEST_MATRIX,
    MixesSamplesError,
    channel_matrix,
    linear_matrix,
    select_index,
)
from .values import (
    Activation,
    Args,
    Condition,
    Constant,
    Shape,
    Weight,
    activations_in,
    values_in,
)

_JOINING = ("cat", "hstack", "stack", "vstack")
_MATRIX_PARTS = ("tril", "triu")
_REDUCTIONS: Mapping[str, Callable[[int], torch.Tensor]] = {
    "mean": lambda size: torch.full((1, size), 1 / size, dtype=torch.float64),
    "sum": lambda size: torch.ones(1, size, dtype=torch.float64),
}


def selection(importer: Importer, node: fx.Node, name: str, args: Args, shapes: list[Shape]) -> Any:
    """A Select for each result, found by pushing feature numbers through the operator."""
    if name == "roll" and 0 in (_dims(args, len(shapes[0]) + 1) or {0}):
        importer.refuse_mixing(node)  # without dims, the batch is rolled as one vector
    args = {key: _unmasked(importer, node, value) for key, value in args.items()}
    inputs = activations_in(args)
    fill = _padding(importer, node, args) if name in ("pad", "constant_pad_nd") else 0.0
    if name in ("pad", "constant_pad_nd"):
        args["value"] = None if args.get("mode", "constant") != "constant" else -1.0

    def apply(parts: list[torch.Tensor]) -> Any:
        return _run_with(importer, node, args, parts, lambda value: _is_data(name, value))

    try:
        indices = select_index(apply, [x.shape for x in inputs], importer.device)
    except MixesSamplesError:
        importer.refuse_mixing(node)
    several = not isinstance(node.meta["val"], torch.Tensor)
    results = []
    for i, (index, shape) in enumerate(zip(indices, shapes, strict=True)):
        label = label_of(node, f"{name}_{i}" if several else name)
        y = importer.builder.select(label, inputs, index, shape, origin_of(node), fill)
        results.append(y)
    return results if several else _with_constants(importer, node, name, args, results[0])


def linear_operator(
    importer: Importer, node: fx.Node, name: str, args: Args, shape: Shape
) -> Activation:
    """A FixedLinear whose matrix is found by running the operator on unit vectors."""
    args = {key: _unmasked(importer, node, value) for key, value in args.items()}
    found = activations_in(args)
    if len(found) != 1:
        importer.refuse(
            node,
            f"{name} multiplies two activations as matrices",
            "only elementwise products of activations are supported",
        )
    for value in values_in(args):
        if isinstance(value, Weight) and value.trainable:
            importer.refuse_parameter(node, value)
    if name in _MATRIX_PARTS and len(shape) < 2:
        importer.refuse_mixing(node)  # the batch would be a dimension of the matrix
    if "dtype" in args:
        args = {**args, "dtype": None}
    if name in _REDUCTIONS and args.get("dim") and math.prod(shape) > 1:
        return along(importer, node, found[0], args["dim"], _REDUCTIONS[name], shape)

    def apply(x: torch.Tensor) -> torch.Tensor:
        return _run_with(importer, node, args, [x])

    return linear_by(importer, node, found[0], apply, shape)


def along(
    importer: Importer,
    node: fx.Node,
    x: Activation,
    dims: list[int],
    matrix: Callable[[int], torch.Tensor],
    shape: Shape,
) -> Activation:
    """What ``matrix(size)``, ``[1, size]``, makes of the features along ``dims``; neighbours go together."""
    axes = {dim % (len(x.shape) + 1) - 1 for dim in dims}
    if -1 in axes:
        importer.refuse_mixing(node)
    label, sizes = label_of(node, op_name(node)), list(x.shape)
    for start in sorted(a for a in axes if a - 1 not in axes):
        stop = next(a for a in range(start, len(sizes) + 1) if a not in axes)
        before, size, after = (
            math.prod(s) for s in (sizes[:start], sizes[start:stop], sizes[stop:])
        )
        sizes[start:stop] = [1] * (stop - start)
        x = importer.builder.fixed_linear(
            label, x, matrix(size), tuple(sizes), origin_of(node), before=before, after=after
        )
    return Activation(x.name, shape)


def linear_by(
    importer: Importer,
    node: fx.Node,
    x: Activation,
    apply: Callable[[torch.Tensor], torch.Tensor],
    shape: Shape,
) -> Activation:
    """``y = apply(x)`` for a linear ``apply`` on ``[N, *x.shape]``."""
    inputs, outputs = math.prod(x.shape), math.prod(shape)
    label = label_of(node, op_name(node))
    if inputs * outputs > LARGE_MATRIX and x.shape[0] == shape[0]:
        channel = channel_matrix(apply, x.shape, outputs, importer.device)
        if channel is not None:
            origin = origin_of(node)
            return importer.builder.fixed_linear(label, x, channel, shape, origin, before=shape[0])
    if inputs * outputs > LARGEST_MATRIX:
        importer.refuse(
            node,
            f"{op_name(node)} maps {inputs} features to {outputs}; its matrix would have "
            f"{inputs * outputs:,} entries, more than {LARGEST_MATRIX:,}",
            "reduce the number of features before it",
        )
    try:
        matrix = linear_matrix(apply, x.shape, outputs, importer.device)
    except MixesSamplesError:
        importer.refuse_mixing(node)
    return importer.builder.fixed_linear(label, x, matrix, shape, origin_of(node))


def _run_with(
    importer: Importer,
    node: fx.Node,
    args: Args,
    parts: list[torch.Tensor],
    marked: Callable[[Any], bool] = lambda value: False,
) -> Any:
    """Run the operator on float64 ``parts`` in place of its activations.

    Constants that are ``marked`` are replaced by tensors full of -1, so that what they contribute can be told
    from features.
    """
    remaining = iter(parts)
    rows = parts[0].shape[0]

    def leaf(value: Any) -> Any:
        if isinstance(value, Activation):
            return next(remaining)
        result = concrete(importer, value, rows, torch.float64)
        if marked(value):
            return torch.full_like(result, -1.0, dtype=torch.float64)
        return result

    return run(node, args, leaf)


def _with_constants(
    importer: Importer, node: fx.Node, name: str, args: Args, y: Activation
) -> Activation:
    """Add what constants contribute to ``cat`` or ``stack``; the selection has zeros in their place."""
    constants = [value for value in values_in(args) if _is_data(name, value)]
    for value in constants:
        if isinstance(value, Weight) and value.trainable:
            importer.refuse_parameter(node, value)
    if all(isinstance(value, Constant) and value.literal == 0 for value in constants):
        return y

    def leaf(value: Any) -> Any:
        if isinstance(value, Activation):
            return torch.zeros(
                (1, *value.shape), dtype=importer.builder.dtype, device=importer.device
            )
        return concrete(importer, value, 1, importer.builder.dtype)

    shift = Constant(f"{y.name}_constant", run(node, args, leaf), batched=True)
    return importer.pointwise(node, "add", {"self": y, "other": shift, "alpha": 1}, y.shape)


def _padding(importer: Importer, node: fx.Node, args: Args) -> float:
    value = args.get("value") or 0.0
    if not isinstance(value, int | float):
        importer.refuse(node, "a padding value that is no number", "pad with a number")
    return float(value)


def _unmasked(importer: Importer, node: fx.Node, value: Any) -> Any:
    """A condition becomes an activation of ones and zeros."""
    if isinstance(value, Condition):
        return importer.pointwise(
            node, "mask", {"self": value}, value.margin.shape, lambda self: self
        )
    if isinstance(value, list):
        return [_unmasked(importer, node, item) for item in value]
    return value


def _dims(args: Args, rank: int) -> set[int]:
    return {dim % rank for dim in args["dims"]}


def _is_data(name: str, value: Any) -> bool:
    """Whether a constant is data that the operator moves, and no index of it."""
    if not isinstance(value, Constant | Weight):
        return False
    return name in _JOINING or value.tensor.is_floating_point()
