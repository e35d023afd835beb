"""Operators that normalise each sample: norms of its features, softmax, and lengths of vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import sympy
import torch
from torch import fx

from ..functions.primitives import select
from ..graph.nodes import Op
from ..graph.normalise import Centre, Normalise
from ..graph.softmax import Softmax
from .fx_nodes import bind, label_of, op_name, origin_of
from .importer import Importer
from .special import per_channel
from .structural import along
from .values import Activation, Args, Shape


def layer_norm(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Any:
    """The features of the last dimensions, without their mean, of mean square 1."""
    x = args["input"]
    places = math.prod(x.shape[: len(x.shape) - len(args["normalized_shape"])])
    y = _standardised(importer, node, x, places, args["eps"])
    return _result(node, _affine(importer, node, y, args["weight"], args["bias"]))


def rms_norm(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """The features of the last dimensions, of mean square 1."""
    x, eps = args["input"], args["eps"]
    places = math.prod(x.shape[: len(x.shape) - len(args["normalized_shape"])])
    eps = torch.finfo(importer.builder.dtype).eps if eps is None else eps
    y = _add(importer, node, Normalise(places, eps), x)
    return _affine(importer, node, y, args["weight"], None)


def group_norm(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Any:
    """Groups of channels with all their positions, without their mean, of mean square 1."""
    x = args["input"]
    groups = args["num_groups"] if "num_groups" in args else args["group"]
    y = _standardised(importer, node, x, groups, args["eps"])
    scale, shift = (
        None if v is None else per_channel(importer, node, v, x.shape)
        for v in (args["weight"], args["bias"])
    )
    return _result(node, _affine(importer, node, y, scale, shift))


def instance_norm(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Any:
    """A group norm of single channels, by the statistics of the sample."""
    if not args["use_input_stats"] or args["running_mean"] is not None:
        importer.refuse(
            node,
            "instance norm with running statistics normalises by those of batches before",
            "set track_running_stats=False",
        )
    return group_norm(importer, node, {**args, "num_groups": args["input"].shape[0]}, shape)


def softmax(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """Softmax, or its logarithm, over one dimension."""
    x = args["self"]
    log = op_name(node).endswith("log_softmax")
    axis = sample_axis(importer, node, x, args["dim"])
    return _along_last(importer, node, x, axis, lambda places: Softmax(places, log))


def vector_norm(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """``√(Σ x²)``, whose slope is 0 where all x are 0, as torch's is."""
    order = args["ord"] if "ord" in args else args["p"]
    if order not in (None, 2, 2.0) or not args["dim"]:
        importer.refuse(
            node,
            f"a norm of order {order} over {args['dim'] or 'all dimensions'}",
            "use torch.linalg.vector_norm with ord=2 and a dim",
        )
    x = args["self"]
    square = importer.pointwise(node, "square", {"self": x}, x.shape)
    total = along(importer, node, square, args["dim"], lambda size: torch.ones(1, size), shape)

    def root(self: sympy.Expr) -> sympy.Expr:
        return select(self, sympy.sqrt(self), sympy.Integer(0))

    return importer.pointwise(node, "norm", {"self": total}, shape, root)


def unit_length(importer: Importer, node: fx.Node, args: Args) -> Activation | None:
    """``x / max(|x|, eps)`` as ``torch.nn.functional.normalize`` writes it, else ``None``."""
    x = args["self"]
    expanded = _bound(node.args[1], "expand", "expand_as")
    clamped = _bound(expanded.get("self"), "clamp_min")
    norm = _bound(clamped.get("self"), "linalg_vector_norm")
    if not norm or importer.values[norm["self"]] != x or not isinstance(x, Activation):
        return None
    eps = clamped["min"]
    if norm["ord"] != 2 or not norm["keepdim"] or len(norm["dim"] or ()) != 1:
        return None
    if not isinstance(eps, int | float):
        return None
    axis = sample_axis(importer, node, x, norm["dim"][0])
    return _along_last(importer, node, x, axis, lambda p: Normalise(p, float(eps), length=True))


def _bound(node: Any, *names: str) -> dict[str, Any]:
    """The arguments of a node that is one of these operators, else none."""
    called = isinstance(node, fx.Node) and node.op == "call_function"
    return bind(node) if called and op_name(node) in names else {}


def sample_axis(importer: Importer, node: fx.Node, x: Activation, dim: int) -> int:
    """The dimension of the user's tensor as one of a sample's; 0, the batch, is refused."""
    axis = dim % (len(x.shape) + 1) - 1
    if axis < 0:
        importer.refuse_mixing(node)
    return axis


def _along_last(
    importer: Importer, node: fx.Node, x: Activation, axis: int, op: Callable[[int], Op]
) -> Activation:
    """A map of the features along one dimension, which is the last while it is applied."""
    there = np.moveaxis(np.arange(math.prod(x.shape)).reshape(x.shape), axis, -1)
    back = np.moveaxis(np.arange(there.size).reshape(there.shape), -1, axis)
    select, origin, name = importer.builder.select, origin_of(node), label_of(node, op_name(node))
    moved = select(f"{name}_moved", [x], there.reshape(-1), there.shape, origin)
    y = _add(importer, node, op(math.prod(there.shape[:-1])), moved)
    return select(f"{name}_back", [y], back.reshape(-1), x.shape, origin)


def _standardised(
    importer: Importer, node: fx.Node, x: Activation, places: int, eps: float
) -> Activation:
    centred = _add(importer, node, Centre(places), x)
    return _add(importer, node, Normalise(places, eps), centred)


def _add(importer: Importer, node: fx.Node, op: Op, x: Activation) -> Activation:
    label = label_of(node, type(op).__name__.lower())
    return importer.builder.add(label, op, [x], x.shape, origin_of(node))


def _affine(importer: Importer, node: fx.Node, y: Activation, weight: Any, bias: Any) -> Activation:
    """``weight y + bias``, of which either may be absent."""
    if weight is None and bias is None:
        return y
    args = {
        "self": y,
        "weight": 1 if weight is None else weight,
        "bias": 0 if bias is None else bias,
    }
    return importer.pointwise(
        node, "affine", args, y.shape, lambda self, weight, bias: self * weight + bias
    )


def _result(node: fx.Node, y: Activation) -> Any:
    """Native norms return their statistics as well, for a backward pass of their own."""
    return y if isinstance(node.meta["val"], torch.Tensor) else [y, None, None]


RULES: Mapping[str, Callable[[Importer, fx.Node, Args, Shape], Any]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "softmax": softmax,
    "log_softmax": softmax,
    "linalg_vector_norm": vector_norm,
    "linalg_norm": vector_norm,
    "norm": vector_norm,
}
