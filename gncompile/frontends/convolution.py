"""Convolutions: one weight at every place of a grid, and their adjoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import fx

from ..graph.convolution import Convolution, ConvolutionTransposed
from ..graph.windows import Geometry
from . import aten, computed
from .affine import joins
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .pooling import window
from .special import Handler, per_channel
from .values import Activation, Args, Condition, Constant, Shape, Weight


def convolution(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """``W ⋆ x + b``, or its adjoint; a bias that has no column of W̄ is added to every channel."""
    x, weight = args["input"], _weight(importer, node, args["weight"])
    transposed = args.get("transposed", op_name(node).startswith("conv_transpose"))
    if not isinstance(x, Activation) or len(x.shape) != weight.tensor.ndim - 1:
        importer.refuse_mixing(node)  # of a grid without channels the batch would be those
    importer.use(node, weight, "a layer's weight")
    bias = None if transposed or not joins(importer, weight, args["bias"]) else args["bias"]
    if transposed:
        kind: Any = partial(
            ConvolutionTransposed, geometry=_adjoint(importer, node, weight, args, shape)
        )
    else:
        x, padding = _evenly_padded(importer, node, x, weight, args)
        kind = partial(Convolution, geometry=_geometry(x.shape, shape, weight, args, padding))
    y = importer.builder.layer(kind, x, weight, bias, shape, origin_of(node))
    if args["bias"] is None or bias is not None:
        return y
    vector = per_channel(importer, node, args["bias"], shape)
    return importer.pointwise(node, "add", {"self": y, "other": vector, "alpha": 1}, shape)


def _weight(importer: Importer, node: fx.Node, value: Any) -> Weight:
    """A parameter; a constant is a frozen one."""
    if isinstance(value, Constant):
        tensor = value.tensor.to(importer.builder.dtype).contiguous()
        return Weight(value.name, tensor.requires_grad_(False))
    if isinstance(value, Activation | Condition):
        importer.refuse(
            node,
            f"the weight of {op_name(node)} is computed of the network's input",
            "make it a parameter of the module, or compute it of parameters",
        )
    alone = isinstance(value, Weight) and not (
        value.trainable and importer.uses.elsewhere(value.parameter)
    )
    if not alone:
        return computed.layer_weight(importer, node, value)
    if not value.parameter.is_contiguous():
        importer.refuse(
            node,
            f"the parameter {value.name!r} lies in memory with its channels last",
            "call model.to(memory_format=torch.contiguous_format) before compiling",
        )
    return value


def _geometry(before: Shape, after: Shape, weight: Weight, args: Args, padding: Any) -> Geometry:
    """Of the convolution from samples ``before`` to ``after``."""
    kernel = weight.tensor.shape[2:]
    of = window(before, len(kernel), tuple(kernel), args["stride"], padding, args["dilation"])
    return Geometry(of, before[0], after[0], args["groups"])


def _adjoint(
    importer: Importer, node: fx.Node, weight: Weight, args: Args, shape: Shape
) -> Geometry:
    """Of the convolution whose adjoint a transposed one is: from its result to its input."""
    x: Activation = args["input"]
    geometry = _geometry(shape, x.shape, weight, args, args["padding"])
    if geometry.window.places != x.shape[1:]:
        importer.refuse(
            node,
            f"{op_name(node)} has an output_padding of {args['output_padding']}, not less than its "
            f"stride {args['stride']}",
            "pad the result with torch.nn.functional.pad",
        )
    return geometry


def _evenly_padded(
    importer: Importer, node: fx.Node, x: Activation, weight: Weight, args: Args
) -> tuple[Activation, Any]:
    """The input and a padding that is the same at both ends; ``"same"`` may need one more point behind."""
    if not isinstance(args["padding"], str):
        return x, args["padding"]
    if args["padding"] == "valid":
        return x, 0
    kernel = weight.tensor.shape[2:]
    dilation = window(x.shape, len(kernel), tuple(kernel), 1, 0, args["dilation"]).dilation
    both = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(total % 2 for total in both):
        table = np.arange(np.prod(x.shape)).reshape(x.shape)
        table = np.pad(table, [(0, 0), *((0, t % 2) for t in both)], constant_values=-1)
        label, origin = label_of(node, "pad"), origin_of(node)
        x = importer.builder.select(label, [x], table.reshape(-1), table.shape, origin)
    return x, [total // 2 for total in both]


RULES: Mapping[str, Handler] = dict.fromkeys(aten.CONVOLUTIONS, convolution)
