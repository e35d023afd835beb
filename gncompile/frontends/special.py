"""The few operators whose arguments need preparing before a table's rule applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sympy import Expr
from torch import fx

from ..functions.applied import exported
from . import aten
from .dropout import masks
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .values import Activation, Args, Condition, Constant, Shape, Shared, Weight, values_in


def batch_norm(importer: Importer, node: fx.Node, args: Args) -> Any:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` in evaluation mode."""
    check_batch_norm(importer, node, args)
    shape = args["input"].shape
    weight = 1 if args["weight"] is None else per_channel(importer, node, args["weight"], shape)
    bias = 0 if args["bias"] is None else per_channel(importer, node, args["bias"], shape)
    prepared = {
        **args,
        "weight": weight,
        "bias": bias,
        "running_mean": per_channel(importer, node, args["running_mean"], shape),
        "running_var": per_channel(importer, node, args["running_var"], shape),
    }
    y = importer.pointwise(node, "batch_norm", prepared, shape)
    return y if isinstance(node.meta["val"], torch.Tensor) else [y, None, None]


def check_batch_norm(importer: Importer, node: fx.Node, args: Args) -> None:
    """Batch norm uses its running statistics only in evaluation mode."""
    if args.get("training") or args["running_mean"] is None:
        importer.refuse(
            node,
            "batch norm in training mode mixes samples: it normalises by the statistics of the batch",
            "call .eval() on the batch-norm module (or the model) before compiling",
        )


def cast(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Any:
    """``to`` the same dtype is nothing at all; a mask becomes numbers when it is used."""
    x = next(v for v in args.values() if isinstance(v, Activation | Condition))
    dtype = node.meta["val"].dtype
    if isinstance(x, Activation) and x.whole and not dtype.is_floating_point:
        return x
    if isinstance(x, Condition) and dtype == importer.builder.dtype:
        return importer.pointwise(node, "mask", {"self": x}, shape, lambda self: self)
    if isinstance(x, Activation) and dtype != importer.builder.dtype:
        importer.refuse(
            node,
            f"a cast to {dtype} inside a network of {importer.builder.dtype}",
            "keep one floating-point dtype throughout the network",
        )
    return x


def dropout(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Any:
    """Nothing in evaluation mode or with p = 0; others are products with their masks by now."""
    return next(values_in(args))


def applied(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """A declared function, as it was declared."""
    function = exported(args["number"])

    def rule(inputs: list[Expr]) -> Expr:
        return function(*inputs)

    return importer.pointwise(node, "", {"inputs": args["inputs"]}, shape, rule)


def glu(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """``a · sigmoid(b)`` with the two halves of one dimension."""
    x: Activation = args["self"]
    dim = args["dim"] % (len(x.shape) + 1) - 1
    if dim < 0:
        importer.refuse_mixing(node)
    table = np.arange(math.prod(x.shape)).reshape(x.shape)
    halves = {}
    for part, index in zip(("value", "gate"), np.split(table, 2, axis=dim), strict=True):
        label = label_of(node, f"glu_{part}")
        halves[part] = importer.builder.select(
            label, [x], index.reshape(-1), shape, origin_of(node)
        )
    return importer.pointwise(node, "glu", {"self": halves["value"], "gate": halves["gate"]}, shape)


def rrelu(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """A fixed slope below zero in evaluation mode."""
    check_rrelu(importer, node, args)
    return importer.pointwise(node, "rrelu", args, shape)


def check_rrelu(importer: Importer, node: fx.Node, args: Args) -> None:
    """RReLU has a fixed slope only in evaluation mode."""
    if args["training"]:
        importer.refuse(
            node,
            "rrelu in training mode draws a new random slope at every call",
            "call .eval() on it (or on the model) before compiling",
        )


def prelu(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """``x`` where positive, else ``x`` times a slope, one for all or one a channel."""
    weight = per_channel(importer, node, args["weight"], shape)
    return importer.pointwise(node, "prelu", {**args, "weight": weight}, shape)


def embedding(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """Rows of a trainable or frozen table, looked up by whole numbers."""
    x, weight = args["indices"], args["weight"]
    if args["scale_grad_by_freq"]:
        importer.refuse(
            node,
            "an embedding with scale_grad_by_freq=True changes the gradient",
            "leave it out: curvature counts how often a row is looked up",
        )
    if not isinstance(weight, Weight) or not isinstance(x, Activation) or not x.whole:
        importer.refuse(
            node,
            "an embedding looks up what is no whole number of the input, or in what is no parameter",
            "pass an integer input [N, ...] to an nn.Embedding",
        )
    if len(weight.parameter) > 2**24:  # beyond, float32 does not hold every whole number
        importer.refuse(node, "an embedding of more than 2**24 rows", "hash the indices first")
    importer.use(node, weight, "a layer's weight")
    padding = args["padding_idx"]
    return importer.builder.embedding(
        x, weight, None if padding < 0 else padding, shape, origin_of(node)
    )


def one_hot(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """Rows with a one at whole numbers of the input."""
    x, classes = args["self"], args["num_classes"]
    if not isinstance(classes, int) or classes < 1:
        importer.refuse(
            node,
            "one_hot without num_classes depends on the values of the batch",
            "give it: one_hot(x, num_classes=K)",
        )
    return importer.builder.one_hot(label_of(node, "one_hot"), x, classes, shape, origin_of(node))


def masked_fill(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """A number where a mask is true; an infinite one, where the mask is a constant, as a summand."""
    value, mask = args["value"], args["mask"]
    number = value.literal if isinstance(value, Constant) else value
    constant = isinstance(mask, Constant) and isinstance(args["self"], Activation)
    if not constant or number is None or math.isfinite(number):
        return importer.pointwise(node, "masked_fill", args, shape)
    kept = (~mask.tensor).to(importer.builder.dtype)
    added = torch.zeros_like(kept).masked_fill(mask.tensor, number)
    given = {
        "self": args["self"],
        "kept": Constant(f"{mask.name}_kept", kept, batched=mask.batched),
        "added": Constant(f"{mask.name}_added", added, batched=mask.batched),
    }
    return importer.pointwise(
        node, "masked_fill", given, shape, lambda self, kept, added: self * kept + added
    )


def logical_not(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Any:
    """The opposite comparison, or one minus a mask."""
    x = args["self"]
    require_masks(importer, node)
    if isinstance(x, Condition):
        return replace(x, holds_if_positive=not x.holds_if_positive)
    return importer.pointwise(node, "logical_not", args, shape)


def require_masks(importer: Importer, node: fx.Node) -> None:
    """``and``, ``or`` and ``not`` of numbers are other functions than of masks."""
    dtypes = [source.meta["val"].dtype for source in node.all_input_nodes]
    if any(dtype != torch.bool for dtype in dtypes):
        importer.refuse(
            node,
            f"{op_name(node)} of numbers ({', '.join(map(str, dtypes))})",
            "compare with 0 first: (x != 0)",
        )


def per_channel(importer: Importer, node: fx.Node, value: Any, shape: Shape) -> Constant | Shared:
    """A vector ``[C]`` as ``[C, 1, …]``, to broadcast over the positions of ``[C, …]``."""
    if isinstance(value, Shared) or (isinstance(value, Weight) and value.trainable):
        vector = importer.shared(node, value)
        ones = [1] * (len(shape) - 1)
        return replace(vector, shape=(math.prod(vector.shape), *ones))
    tensor: torch.Tensor = value.tensor
    if tensor.ndim == 1 and tensor.numel() > 1:
        tensor = tensor.reshape(-1, *[1] * (len(shape) - 1))
    return Constant(value.name, tensor)


Handler = Callable[[Importer, fx.Node, Args, Shape], Any]

RULES: Mapping[str, Handler] = {
    aten.DECLARED: applied,
    aten.MASKS: masks,
    "embedding": embedding,
    "glu": glu,
    "one_hot": one_hot,
    "masked_fill": masked_fill,
    "prelu": prelu,
    "rrelu": rrelu,
    "logical_not": logical_not,
    **dict.fromkeys(aten.CASTS, cast),
    **dict.fromkeys(aten.DROPOUTS, dropout),
}
