"""Operators on trainable parameters alone: what all samples share, until it meets an activation.

A parameter that is no layer's weight is a trainable vector: a node whose value is one row. Moving its
elements selects from that row, and so does a table looked up at constant numbers, places of a sequence;
a function of it is a pointwise node, and ``expand`` to the batch makes it an activation like any other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from . import aten
from .affine import operands, product
from .constants import concrete, run
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .values import Activation, Args, Constant, OfParameters, Shape, Shared, Weight, values_in


def on_shared(importer: Importer, node: fx.Node, name: str, args: Args) -> Any:
    """The result of an operator whose tensors are parameters, and constants perhaps."""
    importer.refuse_known(node, name)
    if name in aten.PRODUCTS and (state := _state(importer, node, name, args)) is not None:
        return state
    results = node.meta["val"]
    if name in aten.ALIASES or name in aten.SELECTING or name == "embedding":
        if isinstance(results, torch.Tensor):
            return _selected(importer, node, args, None, results)
        return [
            _selected(importer, node, args, number, result) for number, result in enumerate(results)
        ]
    shape = tuple(results.shape) if isinstance(results, torch.Tensor) else ()
    if not all(isinstance(size, int) for size in shape):
        importer.refuse(
            node,
            f"{op_name(node)} is computed of trainable parameters alone",
            "compute it of activations, or freeze the parameters with requires_grad_(False)",
        )
    if name not in aten.POINTWISE:
        return OfParameters(label_of(node, op_name(node)), node)
    return Shared(importer.pointwise(node, name, args, shape).name, shape)


def _state(importer: Importer, node: fx.Node, name: str, args: Args) -> Activation | None:
    """A layer of a constant that every sample has alike, the zeros that a recurrence begins with."""
    x, weight, _ = operands(importer, node, name, args)
    if not isinstance(x, Constant) or not x.batched or not isinstance(weight, Weight):
        return None
    shapes = importer.sample_shapes(node)
    begun = importer.constant(node, x)
    given = {key: begun if value is x else value for key, value in args.items()}
    return product(importer, node, name, given, shapes[0])


def _selected(
    importer: Importer, node: fx.Node, args: Args, number: int | None, result: torch.Tensor
) -> Any:
    """Elements moved, or repeated for the batch: found by moving their numbers."""
    sources = [importer.shared(node, v) for v in values_in(args) if isinstance(v, Weight | Shared)]
    starts = np.cumsum([0, *(math.prod(s.shape) for s in sources)])
    remaining = iter(zip(starts, sources, strict=False))

    def leaf(value: Any) -> Any:
        if isinstance(value, Weight | Shared):
            start, source = next(remaining)
            count = math.prod(source.shape)
            table = torch.arange(start, start + count, dtype=torch.float64)
            return table.reshape(source.shape).to(importer.device)
        return concrete(importer, value, 1)

    moved = run(node, args, leaf)
    table = (moved if number is None else moved[number]).cpu().numpy().astype(np.int64)
    batched = bool(result.ndim) and isinstance(result.shape[0], torch.SymInt)
    shape: Shape = tuple(int(size) for size in (table.shape[1:] if batched else table.shape))
    if batched and table.shape[0] != 1:
        importer.refuse_mixing(node)
    rows = [Activation(s.name, (math.prod(s.shape),)) for s in sources]
    label = label_of(node, op_name(node))
    y = importer.builder.select(label, rows, table.reshape(-1), shape, origin_of(node))
    return Activation(y.name, shape) if batched else Shared(y.name, shape)
