"""The streams of each kind of node (see :mod:`~gncompile.graph.streams`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

from ..functions.faa_di_bruno import Partials, chain
from ..functions.primitives import number
from .bilinear import Bilinear
from .convolution import Convolution, ConvolutionTransposed
from .fuse_pointwise import named_after_values, symbol_of
from .layers import Affine, LayerOp
from .nodes import FixedLinear, Input, Node, Op, Pointwise, Select
from .normalise import Centre, Normalise
from .pooling import MaxPool, SumPool
from .softmax import Softmax
from .stream_mixing import (
    bilinear_streams,
    max_pool_streams,
    normalise_streams,
    softmax_streams,
)
from .stream_walk import Rule, Streams, Walk


def input_streams(walk: Walk, node: Node) -> Streams:
    """Rows of constants, one-hot where one feature alone is meant."""
    first = walk.first.get(node.name)
    if first is None:
        return {}
    made: dict[float, str] = {}
    found: Streams = {}
    for d in walk.needed[node.name]:
        slopes = {index[0] - first: w for index, w in d.terms if len(index) == 1}
        slopes = {i: w for i, w in slopes.items() if 0 <= i < node.size}
        if not slopes:
            continue
        for w in slopes.values():
            if w not in made:
                made[w] = _constant(walk, node, w)
        values = list(dict.fromkeys(slopes.values()))
        index = [values.index(slopes[i]) if i in slopes else -1 for i in range(node.size)]
        label = f"{node.name}{walk.labels[d]}"
        inputs = [made[w] for w in values]
        found[d] = walk.add(label, Select(tuple(index)), inputs, node.shape, node)
    return found


def _constant(walk: Walk, node: Node, value: float) -> str:
    """A node of one feature that is this number."""
    one = walk.add(f"{node.name}__first", Select((0,)), [node.name], (1,), node)
    constant = Pointwise(number(value), (symbol_of(one),))
    return walk.add(f"{node.name}__constant", constant, [one], (1,), node)


def linear_streams(walk: Walk, node: Node) -> Streams:
    op = replace(node.op, bias=None) if isinstance(node.op, LayerOp) else node.op
    known = walk.streams[node.inputs[0]]
    return {
        d: walk.add(f"{node.name}{walk.labels[d]}", op, [known[d]], node.shape, node)
        for d in walk.needed[node.name]
        if d in known
    }


def affine_streams(walk: Walk, node: Node) -> Streams:
    """All streams side by side as places of one product."""
    (source,) = node.inputs
    known = walk.streams[source]
    present = [d for d in walk.needed[node.name] if d in known]
    if len(present) < 2:
        return linear_streams(walk, node)
    assert isinstance(node.op, Affine)
    op = replace(node.op, bias=None, places=node.op.places * len(present))
    x = _side_by_side(walk, source, [known[d] for d in present])
    h = walk.add(f"{node.name}__streams", op, [x], (len(present), *node.shape), node)
    parts = [range(i * node.size, (i + 1) * node.size) for i in range(len(present))]
    return {
        d: walk.add(f"{node.name}{walk.labels[d]}", Select(tuple(part)), [h], node.shape, node)
        for d, part in zip(present, parts, strict=True)
    }


def _side_by_side(walk: Walk, source: str, streams: list[str]) -> str:
    """One node for all layers that read the same."""
    key, of = tuple(streams), walk.nodes[source]
    if key not in walk.stacked:
        index, shape = tuple(range(len(key) * of.size)), (len(key), *of.shape)
        walk.stacked[key] = walk.add(f"{source}__streams", Select(index), key, shape, of)
    return walk.stacked[key]


def select_streams(walk: Walk, node: Node) -> Streams:
    assert isinstance(node.op, Select)
    sizes = [walk.nodes[name].size for name in node.inputs]
    starts = list(accumulate(sizes, initial=0))
    found: Streams = {}
    for d in walk.needed[node.name]:
        moved: list[str] = []
        places = [-1] * starts[-1]  # of each feature of the inputs among those of their streams
        width = 0
        for name, start, size in zip(node.inputs, starts, sizes, strict=False):
            if d in walk.streams[name]:
                moved.append(walk.streams[name][d])
                places[start : start + size] = range(width, width + size)
                width += size
        index = tuple(places[i] if i >= 0 else -1 for i in node.op.index)
        if any(i >= 0 for i in index):
            label = f"{node.name}{walk.labels[d]}"
            found[d] = walk.add(label, Select(index), moved, node.shape, node)
    return found


def pointwise_streams(walk: Walk, node: Node) -> Streams:
    op = named_after_values(node)
    inner = [walk.symbols(name) for name in node.inputs]
    label = node.name
    while any(name.startswith(f"{label}__d") for name in walk.nodes):
        label += "_"
    partials = Partials(op.expression, op.arguments, symbol_of(node.name), label)
    found = {d: chain(d, partials, inner) for d in walk.needed[node.name]}
    if partials.crossed:
        walk.kinks[node.name] = node
    constants = dict(op.constants)
    for symbol, e in partials.named.items():
        walk.pointwise(symbol.name, e, node, constants)
    return walk.nodes_of(node.name, found, node, constants)


LINEAR: Mapping[type[Op], Rule] = {
    Affine: affine_streams,
    Select: select_streams,
    MaxPool: max_pool_streams,
    **dict.fromkeys(
        (FixedLinear, Centre, SumPool, Convolution, ConvolutionTransposed), linear_streams
    ),
}
"""Kinds of node of which a derivative is made of the same one of the inputs."""

RULES: Mapping[type[Op], Rule] = {
    **LINEAR,
    Input: input_streams,
    Pointwise: pointwise_streams,
    Bilinear: bilinear_streams,
    Softmax: softmax_streams,
    Normalise: normalise_streams,
}
