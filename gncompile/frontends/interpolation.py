"""Constant grids read at places that the network computes: ``grid_sample``, and ``gncompile.interpolate``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from sympy import Expr
from torch import Tensor, fx

from ..functions.interpolate import Interpolant, Kernel, Padding
from ..functions.primitives import number
from ..graph.interpolate import Interpolate
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .special import Handler
from .structural import linear_operator
from .values import Activation, Args, Constant, Shape, Weight

MODES: Mapping[int, Kernel] = {0: "linear", 2: "cubic"}
PADDINGS: Mapping[int, Padding] = {0: "zeros", 1: "border", 2: "reflection"}


def grid_sample(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """An image that is repeated over the batch, at places in ``[−1, 1]``, the last axis first."""
    if isinstance(args["input"], Activation) and isinstance(args["grid"], Constant):
        return linear_operator(
            importer, node, op_name(node), args, shape
        )  # at the same places always
    mode, corners = args["interpolation_mode"], args["align_corners"]
    if mode not in MODES:
        importer.refuse(
            node,
            "grid_sample of mode 'nearest': its slope is zero wherever it is defined",
            "use mode='bilinear' or 'bicubic'",
        )
    name, grid = _grid(importer, node, args["input"], batched=True)
    size = tuple(grid.shape[1:])
    places = _places(importer, node, args["grid"])[::-1]

    def points(axis: int, x: Activation) -> Activation:
        """In points of the grid: the first and last are at ∓1, or half a point further in."""
        last = size[axis] - 1
        scale, shift = number((last if corners else last + 1) / 2), number(last / 2)

        def rule(self: Expr) -> Expr:
            return scale * self + shift

        return importer.pointwise(node, "places", {"self": x}, x.shape, rule)

    inner = [points(axis, x) for axis, x in enumerate(places)]
    padding, order = PADDINGS[args["padding_mode"]], (0,) * len(size)
    of = Interpolant(size, MODES[mode], padding, corners, order)
    return _node(importer, node, (name, grid), of, inner, shape)


def interpolate(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """A grid at places in its points, as :func:`gncompile.interpolate` has it traced."""
    name, grid = _grid(importer, node, args["grid"], batched=False)
    size, order = tuple(grid.shape[1:]), tuple(args["order"])
    of = Interpolant(size, args["mode"], args["padding"], True, order)
    places = _places(importer, node, args["places"])
    return _node(importer, node, (name, grid), of, places, shape)


def _grid(importer: Importer, node: fx.Node, value: Any, batched: bool) -> tuple[str, Tensor]:
    """The constant ``[C, *size]`` and its name."""
    if isinstance(value, Constant) and value.batched == batched:
        return value.name, value.tensor[0] if batched else value.tensor
    if isinstance(value, Weight) and not value.trainable and not batched:
        return value.name, value.tensor
    repeated = ", repeated over the batch: self.image.expand(n, -1, -1, -1)" if batched else ""
    return importer.refuse(
        node,
        f"{op_name(node)} reads an image that is no constant: it is trained, or differs between samples",
        f"keep it as a buffer{repeated}; the places may be computed, the image's values may not",
    )


def _places(importer: Importer, node: fx.Node, value: Any) -> list[Activation]:
    """The coordinates of places ``[.., d]``, one by one: ``[..]`` each."""
    if not isinstance(value, Activation):
        importer.refuse(
            node,
            f"{op_name(node)} reads an image at places that do not depend on the network's input",
            "compute the places from the input, or read the image in __init__ and keep what it gives",
        )
    *shape, rank = value.shape
    table = np.arange(math.prod(value.shape)).reshape(value.shape)
    label, origin = label_of(node, "coordinate"), origin_of(node)
    return [
        importer.builder.select(label, [value], table[..., i].reshape(-1), tuple(shape), origin)
        for i in range(rank)
    ]


def _node(
    importer: Importer,
    node: fx.Node,
    named: tuple[str, Tensor],
    of: Interpolant,
    places: list[Activation],
    shape: Shape,
) -> Activation:
    """The interpolant at places, which are repeated for every channel."""
    name, grid = named
    constant, channels = importer.builder.constant(name, grid), len(grid)
    repeated = [
        importer.broadcast(node, Activation(x.name, (1, *x.shape)), (channels, *x.shape))
        for x in places
    ]
    op = Interpolate(constant, channels, of)
    label = label_of(node, op_name(node))
    return importer.builder.add(label, op, repeated, shape, origin_of(node))


RULES: Mapping[str, Handler] = {
    "interpolate": interpolate,
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), grid_sample),
}
