"""Pooling: windows on a grid, by the numbers that torch's operators take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ..graph.pooling import MaxPool, SumPool
from ..graph.windows import Window
from . import aten
from .constants import run
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .special import Handler
from .structural import linear_operator
from .values import Activation, Args, Constant, Shape, activations_in


def max_pool(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Any:
    """The maximum of every window; the indices that an operator gives besides are not supported."""
    y = _pooled(importer, node, MaxPool(_window(node, args)), args, shape)
    return y if isinstance(node.meta["val"], torch.Tensor) else _without_indices(importer, node, y)


def adaptive_max_pool(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Any:
    """The maximum of windows that divide the grid among them."""
    x = activations_in(args)[0]
    window = _dividing(x.shape, shape, rank_of(node))
    if window is None:
        importer.refuse(
            node,
            f"{op_name(node)} of a grid {list(x.shape)} to {list(shape)}: its windows differ in size",
            "choose an output size that divides the grid's",
        )
    y = _pooled(importer, node, MaxPool(window), args, shape)
    return _without_indices(importer, node, y)


def average_pool(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """The sum of every window over what torch divides it by, which is learnt from a grid of ones."""
    return _average(importer, node, _window(node, args), args, shape)


def adaptive_average_pool(
    importer: Importer, node: fx.Node, args: Args, shape: Shape
) -> Activation:
    """The average of windows that divide the grid among them, or a matrix where their sizes differ."""
    x = activations_in(args)[0]
    window = _dividing(x.shape, shape, rank_of(node))
    if window is None:
        return linear_operator(importer, node, op_name(node), args, shape)
    return _average(importer, node, window, args, shape)


def _average(
    importer: Importer, node: fx.Node, window: Window, args: Args, shape: Shape
) -> Activation:
    summed = _pooled(importer, node, SumPool(window), args, shape)
    ones = torch.ones(1, 1, *window.size, dtype=torch.float64)
    averages = run(node, args, lambda value: ones if isinstance(value, Activation) else value)
    seen = SumPool(window).plain(ones.flatten(1)).reshape(averages.shape)
    counts = (seen / averages).round()[0, 0]
    if bool((counts == counts.flatten()[0]).all()):
        divisor: Any = int(counts.flatten()[0])
    else:
        divisor = Constant(f"{summed.name}_counts", counts)
    return importer.pointwise(node, "div", {"self": summed, "other": divisor}, shape)


def _pooled(
    importer: Importer, node: fx.Node, op: MaxPool | SumPool, args: Args, shape: Shape
) -> Activation:
    x = activations_in(args)[0]
    if math.prod(op.window.kernel) == 1 and op.window.size == op.window.places:
        return Activation(x.name, shape)
    label = label_of(node, op_name(node))
    return importer.builder.add(label, op, [x], shape, origin_of(node))


def _without_indices(importer: Importer, node: fx.Node, y: Activation) -> list[Any]:
    """The result and, for the indices, nothing that could be computed with."""
    read = [user for user in node.users if user.args[1] != 0 and user.users]
    if read:
        importer.refuse(
            read[0],
            f"the indices of {op_name(node)} are whole numbers, which no layer computes with",
            "use the maxima alone; nn.Upsample or a transposed convolution undo a pooling",
        )
    return [y, None]


def _window(node: fx.Node, args: Args) -> Window:
    kernel, x = args["kernel_size"], activations_in(args)[0]
    stride, padding, dilation = args["stride"] or kernel, args["padding"], args.get("dilation", 1)
    return window(x.shape, rank_of(node), kernel, stride, padding, dilation, args["ceil_mode"])


def rank_of(node: fx.Node) -> int:
    """The dimensions of the grids that an operator works on, which its name tells."""
    return next(int(digit) for digit in op_name(node) if digit.isdigit())


def window(
    shape: Shape,
    rank: int,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil: bool = False,
) -> Window:
    """On the last ``rank`` dimensions of a sample, each number for one dimension or for all."""
    size = shape[len(shape) - rank :]
    k, s, p, d = (_for_each(value, rank) for value in (kernel, stride, padding, dilation))
    return Window(size, k, s, p, d, bool(ceil))


def _for_each(value: Any, rank: int) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    return numbers * rank if len(numbers) == 1 else numbers


def _dividing(before: Shape, after: Shape, rank: int) -> Window | None:
    """Windows side by side that cover the grid, if its sizes are multiples of the result's."""
    pairs = list(zip(before[len(before) - rank :], after[len(after) - rank :], strict=True))
    if any(size % places for size, places in pairs):
        return None
    kernel = [size // places for size, places in pairs]
    return window(before, rank, kernel, kernel, 0, 1)


RULES: Mapping[str, Handler] = {
    **dict.fromkeys(aten.MAX_POOLS, max_pool),
    **dict.fromkeys(aten.ADAPTIVE_MAX_POOLS, adaptive_max_pool),
    **dict.fromkeys(aten.AVERAGE_POOLS, average_pool),
    **dict.fromkeys(aten.ADAPTIVE_AVERAGE_POOLS, adaptive_average_pool),
}
