"""Streams of nodes that mix the features of a sample: matrix products, norms, softmax, maxima of windows.

Each is written in pointwise nodes, sums and selections, whose streams are those of
:mod:`~gncompile.graph.streams`.
"""

from __future__ import annotations

import math
from itertools import product

import sympy
from sympy import Add, Integer, Rational, Symbol

from ..functions.faa_di_bruno import Derivative, chain, closed, weighted
from ..functions.primitives import LARGEST, maximum, number, select
from .fuse_pointwise import symbol_of
from .nodes import Node, Pointwise, Select
from .normalise import Normalise
from .pooling import MaxPool, SumPool
from .softmax import Softmax
from .stream_walk import Streams, Walk
from .windows import Window


def bilinear_streams(walk: Walk, node: Node) -> Streams:
    """``∂_α(A B) = Σ_{β ⊆ α} ∂_β A ∂_{α-β} B``."""
    a, b = (walk.streams[name] for name in node.inputs)
    products: dict[tuple[str, str], Symbol] = {}

    def times(left: str | None, right: str | None, label: str) -> sympy.Expr:
        if left is None or right is None:
            return Integer(0)
        if (left, right) not in products:
            made = walk.add(f"{label}__part", node.op, (left, right), node.shape, node)
            products[left, right] = symbol_of(made)
        return products[left, right]

    found = {}
    for d in walk.needed[node.name]:
        label = f"{node.name}{walk.labels[d]}"
        terms = [times(a.get(d), node.inputs[1], label), times(node.inputs[0], b.get(d), label)]
        for index, weight in d.terms:
            for picks in product((True, False), repeat=len(index)):
                if any(picks) and not all(picks):
                    taken = [i for i, pick in zip(index, picks, strict=True) if pick]
                    rest = [i for i, pick in zip(index, picks, strict=True) if not pick]
                    left, right = a.get(Derivative.along(*taken)), b.get(Derivative.along(*rest))
                    terms.append(weighted(weight, times(left, right, label)))
        found[d] = Add(*terms)
    return walk.nodes_of(node.name, found, node)


def softmax_streams(walk: Walk, node: Node) -> Streams:
    """Those of ``log p = x − log Σ exp(x)`` and ``p = exp(log p)``, both functions at values that p tells.

    ``exp(x) / s`` with the constant ``s = Σ exp(x)`` has the value p, its sum the value 1.
    """
    op, wanted = node.op, closed(walk.needed[node.name])
    assert isinstance(op, Softmax)
    p = symbol_of(node.name)
    if op.log:
        made = walk.pointwise(f"{node.name}__p", sympy.exp(p), node)
        assert made is not None
        p = symbol_of(made)
    x = walk.symbols(node.inputs[0])
    exponentials = {d: chain(d, lambda _: p, [x]) for d in wanted}
    terms = walk.nodes_of(f"{node.name}__exp", exponentials, node)
    sums = {d: symbol_of(_sum(walk, name, node, op.places)) for d, name in terms.items()}

    def log_at_one(positions: tuple[int, ...]) -> sympy.Expr:
        order = len(positions)
        return Integer((-1) ** (order - 1) * math.factorial(order - 1))

    logs = walk.nodes_of(
        f"{node.name}__log_sum", {d: chain(d, log_at_one, [sums]) for d in wanted}, node
    )
    spread = {d: symbol_of(_spread(walk, name, node, op.places)) for d, name in logs.items()}
    log_p = {d: x.get(d, Integer(0)) - spread.get(d, Integer(0)) for d in wanted}
    if op.log:
        return walk.nodes_of(node.name, log_p, node)
    inner = walk.nodes_of(f"{node.name}__log", log_p, node)
    symbols = {d: symbol_of(name) for d, name in inner.items()}
    return walk.nodes_of(node.name, {d: chain(d, lambda _: p, [symbols]) for d in wanted}, node)


def normalise_streams(walk: Walk, node: Node) -> Streams:
    """The node, its value included, as ``x ρ`` with ``ρ = 1/√(Σx²/d + eps)``, or ``1/max(√Σx², eps)``."""
    op, (source,) = node.op, node.inputs
    assert isinstance(op, Normalise)
    x, s = Symbol("x", real=True), Symbol("s", real=True)
    eps, root = number(op.eps), Rational(-1, 2)
    if op.length:
        rho = select(s - eps**2, s**root, 1 / eps)
    else:
        rho = (s / (node.size // op.places) + eps) ** root
    label, places = node.name, op.places

    def visit(name: str, expression: sympy.Expr, *inputs: tuple[Symbol, str]) -> str:
        symbols, names = zip(*inputs, strict=True)
        shape = walk.nodes[names[0]].shape
        walk.visit(Node(name, Pointwise(expression, symbols), names, shape, node.origin))
        return name

    squares = visit(f"{label}__squares", x**2, (x, source))
    total = _visited(walk, _sum(walk, squares, node, places))
    scale = visit(f"{label}__scale", rho, (s, total))
    walk.kinks.pop(scale, None)  # the bound is there for rounding
    spread = _visited(walk, _spread(walk, scale, node, places))
    visit(label, x * s, (x, source), (s, spread))
    return walk.streams[label]


def max_pool_streams(walk: Walk, node: Node) -> Streams:
    """Of every window the streams of the tap that is largest; of equal ones the first."""
    op, (source,) = node.op, node.inputs
    assert isinstance(op, MaxPool)
    channels = node.size // math.prod(op.window.places)
    points = math.prod(op.window.size)

    def tap(name: str, which: int, fill: float) -> str:
        behind = [sources[which] for sources in op.window.sources]
        index = [c * points + i if i >= 0 else -1 for c in range(channels) for i in behind]
        return walk.add(f"{name}__tap", Select(tuple(index), fill), [name], node.shape, node)

    values = [symbol_of(tap(source, k, -float(LARGEST))) for k in range(len(op.window.taps))]
    largest = values[:1]
    for value in values[1:]:
        made = walk.pointwise(f"{node.name}__largest", maximum(value, largest[-1]), node)
        largest.append(symbol_of(str(made)))
    found = {}
    for d in walk.needed[node.name]:
        if d in walk.streams[source]:
            name = walk.streams[source][d]
            first, *others = [symbol_of(tap(name, k, 0.0)) for k in range(len(values))]
            for k, stream in enumerate(others, start=1):
                first = select(values[k] - largest[k - 1], stream, first)
            found[d] = first
    if any(d.order > 1 for d in found):
        walk.kinks[node.name] = node
    return walk.nodes_of(node.name, found, node)


def _window(size: int) -> Window:
    return Window((size,), (size,), (size,), (0,), (1,))


def _sum(walk: Walk, name: str, of: Node, places: int) -> str:
    """Over the features of every place."""
    pool = SumPool(_window(of.size // places))
    return walk.add(f"{name}__sum", pool, [name], (places,), of)


def _spread(walk: Walk, name: str, of: Node, places: int) -> str:
    """A number of every place to all of its features."""
    index = tuple(place for place in range(places) for _ in range(of.size // places))
    return walk.add(f"{name}__spread", Select(index), [name], of.shape, of)


def _visited(walk: Walk, name: str) -> str:
    walk.visit(walk.nodes[name])
    return name
