"""Operators that move features and the batch: a recurrence's states are ``[layers, N, H]``, time comes first.

Such a tensor is :class:`~gncompile.frontends.values.Turned`; only what moves its elements reads it, and with
the batch in front again it is an activation as before.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from . import aten
from .constants import concrete, run
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .values import Activation, Args, Constant, Turned, Weight, values_in

ROWS = 2
"""Samples of the batch whose elements are moved: enough to see which dimension is the batch."""


def turns(importer: Importer, node: fx.Node, name: str, args: Args) -> bool:
    """Whether the operator only moves features, and the batch is not in front before or after."""
    if name not in aten.SELECTING and name not in aten.ALIASES:
        return False
    results = node.meta["val"]
    after = [results] if isinstance(results, Tensor) else results
    elsewhere = (_batch_of(importer, result) not in (0, None) for result in after)
    return any(isinstance(v, Turned) for v in values_in(args)) or any(elsewhere)


def moved(importer: Importer, node: fx.Node, args: Args) -> Any:
    """What the operator makes of tensors in which the batch is somewhere."""
    found = [v for v in values_in(args) if isinstance(v, Activation | Turned)]
    rows = [_in_front(importer, node, value) for value in found]
    starts = np.cumsum([0, *(math.prod(x.shape) for x in rows)])
    remaining = iter(zip(found, rows, starts, strict=False))

    def leaf(value: Any) -> Any:
        if isinstance(value, Activation | Turned):
            _, x, start = next(remaining)
            numbers = (
                torch.arange(ROWS)[:, None] * starts[-1] + start + torch.arange(math.prod(x.shape))
            )
            dim = value.dim if isinstance(value, Turned) else 0
            return numbers.reshape(ROWS, *x.shape).movedim(0, dim).to(importer.device)
        result = concrete(importer, value, ROWS)
        if isinstance(value, Constant | Weight) and result.is_floating_point():
            importer.refuse_mixing(node)
        return result

    tables, results = run(node, args, leaf), node.meta["val"]
    if isinstance(results, Tensor):
        return _selected(importer, node, rows, tables, results, op_name(node))
    named = enumerate(zip(tables, results, strict=True))
    return [
        _selected(importer, node, rows, t, result, f"{op_name(node)}_{i}")
        for i, (t, result) in named
    ]


def _selected(
    importer: Importer,
    node: fx.Node,
    rows: list[Activation],
    table: Tensor,
    result: Tensor,
    name: str,
) -> Activation | Turned:
    """The features that a table of moved numbers tells, if every sample's are its own."""
    dim, total = _batch_of(importer, result), sum(math.prod(x.shape) for x in rows)
    if dim is None:
        importer.refuse_mixing(node)
    first, second = table.movedim(dim, 0).cpu().numpy()
    if first.min(initial=0) < 0 or first.max(initial=0) >= total or (second != first + total).any():
        importer.refuse_mixing(node)
    label = label_of(node, name)
    y = importer.builder.select(label, rows, first.reshape(-1), first.shape, origin_of(node))
    y = Activation(y.name, first.shape)
    return Turned(y, dim) if dim else y


def _in_front(importer: Importer, node: fx.Node, value: Activation | Turned) -> Activation:
    """The same with the batch in front."""
    x = value.value if isinstance(value, Turned) else value
    return importer.constant(node, x) if isinstance(x, Constant) else x


def _batch_of(importer: Importer, result: Tensor) -> int | None:
    """The dimension that is the batch, if there is one and all others are numbers."""
    shape: tuple[Any, ...] = tuple(result.shape)
    found = [dim for dim, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    return found[0] if len(found) == 1 and shape[found[0]].node.expr == importer.batch else None
