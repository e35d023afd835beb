"""Affine layers ``y_s = x_s Wᵀ + b`` at one or several places of a sample."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..graph.layers import Affine
from . import aten, bilinear, computed
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .structural import linear_by, linear_operator
from .uses import TRANSPOSITIONS
from .values import Activation, Args, Constant, OfParameters, Shape, Shared, Weight

LARGEST_COMPUTED = 4096
"""Entries of a pointwise function of parameters that is a weight and has a curvature rule."""

WEIGHTS = {"linear": "weight", "addmm": "mat2", "mm": "mat2", "matmul": "other"}
"""Of each product the argument that is a weight."""


def view_of_weight(weight: Weight, name: str, result: torch.Tensor) -> Weight | None:
    """The parameter copied or transposed, which still is that parameter; else ``None``."""
    tensor = weight.tensor
    if name in aten.ALIASES and result.shape == tensor.shape:
        return weight
    if name in TRANSPOSITIONS and tensor.ndim == 2:
        kept = result.shape == tensor.shape and result.stride() == tensor.stride()
        return weight if kept else weight.mT
    return None


def product(importer: Importer, node: fx.Node, name: str, args: Args, shape: Shape) -> Activation:
    """``linear``, ``addmm``, ``matmul`` or ``mm`` of an activation and a parameter or constant."""
    x, weight, bias = operands(importer, node, name, args)
    if isinstance(x, Activation) and _apart(importer, weight):
        whole = computed.layer_weight(importer, node, args[WEIGHTS[name]])
        return _affine(importer, node, x, whole if name == "linear" else whole.mT, bias, shape)
    if isinstance(x, Activation) and isinstance(weight, Shared):
        y = _computed(importer, node, x, weight, name == "linear", shape)
        return y if bias is None else _plus(importer, node, y, bias)
    if not isinstance(x, Activation) or not _is_matrix(weight):
        return linear_operator(importer, node, name, args, shape)
    if isinstance(weight, Weight):
        return _affine(importer, node, x, weight, bias, shape)
    positions = math.prod(x.shape[:-1])
    if positions == 1:
        label = label_of(node, op_name(node))
        y = importer.builder.fixed_linear(
            label, x, weight.tensor, shape, origin_of(node), weight.name
        )
    else:
        fixed = weight.tensor.double()
        y = linear_by(importer, node, x, lambda v: functional.linear(v, fixed), shape)
    return y if bias is None else _plus(importer, node, y, bias)


def bilinear_layer(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """``y_k = x W_k zᵀ + b_k``: an affine layer of all products of a feature of x and one of z."""
    x, z, weight, bias = (args[name] for name in ("input1", "input2", "weight", "bias"))
    plain = isinstance(weight, Weight) and not _apart(importer, weight)
    if not isinstance(x, Activation) or not isinstance(z, Activation) or not plain:
        importer.refuse(
            node,
            "bilinear of what is no activation, or with a weight that is no parameter alone",
            "write it out: torch.einsum('ni,kij,nj->nk', x, w, z)",
        )
    places = shape[:-1]
    pairs = (*places, x.shape[-1], z.shape[-1])
    column = Activation(x.name, (*places, x.shape[-1], 1))
    row = Activation(z.name, (*places, 1, z.shape[-1]))
    products = bilinear.matrices(importer, node, column, row, pairs)
    flat = Activation(products.name, (*places, math.prod(pairs[-2:])))
    return _affine(importer, node, flat, weight, bias, shape)


def _apart(importer: Importer, weight: Any) -> bool:
    """Whether a weight is no parameter, or not alone, and a first-order rule trains what it is made of."""
    if isinstance(weight, Shared):
        return len(weight.shape) == 2 and math.prod(weight.shape) > LARGEST_COMPUTED
    if isinstance(weight, Weight):
        return weight.trainable and importer.uses.elsewhere(weight.parameter)
    return isinstance(weight, OfParameters) and len(weight.shape) == 2


def _computed(
    importer: Importer, node: fx.Node, x: Activation, weight: Shared, transposed: bool, shape: Shape
) -> Activation:
    """A product with a small weight that is computed of parameters, masked, say: a product of activations.

    Every sample has a copy of the weight then, and vectors to it; the parameters are trainable vectors.
    """
    rows = Activation(x.name, (math.prod(x.shape[:-1]), x.shape[-1]))
    matrix = Activation(weight.name, weight.shape)
    return bilinear.matrices(importer, node, rows, matrix, shape, transposed)


def operands(importer: Importer, node: fx.Node, name: str, args: Args) -> tuple[Any, Any, Any]:
    """``(x, W, b)`` with ``W: [out, in]``."""
    if name == "linear":
        return args["input"], args["weight"], args["bias"]
    if name == "addmm":
        if (args["beta"], args["alpha"]) != (1, 1):
            importer.refuse(
                node, "addmm with alpha or beta other than 1", "scale the result instead"
            )
        x, weight, bias = args["mat1"], args["mat2"], args["self"]
    else:
        x, weight, bias = args["self"], args["other" if name == "matmul" else "mat2"], None
    return x, weight.mT if _is_matrix(weight) else weight, bias


def _is_matrix(value: Any) -> bool:
    """A constant ``[out, in]``, none of whose dimensions is the batch."""
    constant = isinstance(value, Weight) or (isinstance(value, Constant) and not value.batched)
    return constant and value.tensor.ndim == 2


def _affine(
    importer: Importer, node: fx.Node, x: Activation, weight: Weight, bias: Any, shape: Shape
) -> Activation:
    importer.use(node, weight, "a layer's weight")
    if bias is None or joins(importer, weight, bias):
        return importer.builder.affine(x, weight, bias, shape, origin_of(node))
    y = importer.builder.affine(x, weight, None, shape, origin_of(node))
    return _plus(importer, node, y, bias)


def joins(importer: Importer, weight: Weight, bias: Any) -> bool:
    """Whether a bias belongs to the layer of the weight: trained with it, or frozen."""
    if not isinstance(bias, Weight) or weight.computed is not None:
        return False
    if not bias.trainable:
        return True
    return weight.trainable and importer.uses.homogeneous(weight.parameter, bias.parameter)


def with_trailing_bias(importer: Importer, node: fx.Node, args: Args) -> Activation | None:
    """``x Wᵀ + b`` with a plain ``+``: attach the parameter ``b`` to the affine node, else ``None``."""
    if args.get("alpha") != 1:
        return None
    left, right = args["self"], args["other"]
    y, bias = (left, right) if isinstance(left, Activation) else (right, left)
    source = next((n for n in node.all_input_nodes if importer.values[n] is y), None)
    if not isinstance(y, Activation) or not isinstance(bias, Weight) or source is None:
        return None
    affine = importer.builder[y.name].op
    own = op_name(source) in aten.PRODUCTS and len(source.users) == 1
    fits = isinstance(affine, Affine) and affine.bias is None and bias.tensor.shape == y.shape[-1:]
    if not (own and fits and isinstance(affine, Affine)):
        return None
    if affine.computed is not None:
        return None
    own_weight = importer.builder.parameters[affine.weight]
    if not joins(importer, Weight(affine.weight, own_weight), bias):
        return None
    importer.builder.attach_bias(y, bias)
    return y


def _plus(importer: Importer, node: fx.Node, y: Activation, bias: Any) -> Activation:
    return importer.pointwise(node, "add", {"self": y, "other": bias, "alpha": 1}, y.shape)
