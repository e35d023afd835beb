"""Derivatives of a network's outputs with respect to its inputs, as nodes beside its own: streams.

Every node ``a`` that moves with the inputs gets a node for each of its derivatives that is needed, by ordinary
nodes, so gradient, R-operator and curvature follow (docs/mathematics.md#streams)::

    affine      ∂h = ∂a Wᵀ             all derivatives side by side as places: one product
    pointwise   ∂_ij φ(h) = φ'(h) ∂_ij h + φ''(h) ∂_i h ∂_j h     and so on (:mod:`~gncompile.functions.faa_di_bruno`)
    bilinear    ∂(A B) = ∂A B + A ∂B                              and so on
    norm        as the mean, the root and the product that it is made of
    softmax     as ``exp(x − log Σ exp(x))``
    the others  are linear in what moves: the same of every derivative

A derivative that is zero everywhere has no node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from sympy import Expr, Symbol

from ..base.names import identifier
from ..errors import CompileError
from ..functions.composition import is_affine
from ..functions.faa_di_bruno import Derivative, Partials, chain, closed, inlined
from ..functions.primitives import number
from ..functions.stable_forms import stable
from .bilinear import Bilinear
from .convolution import Convolution, ConvolutionTransposed
from .dead_nodes import remove_dead_nodes
from .embedding import is_whole
from .fuse_pointwise import fuse_pointwise, named_after_values, symbol_of
from .layers import Affine, LayerOp
from .model_graph import ModelGraph, TracedModel
from .nodes import FixedLinear, Input, Node, Op, Output, Pointwise, Select, describe
from .normalise import Centre, Normalise
from .pooling import MaxPool, SumPool
from .softmax import Softmax
from .stream_rules import (
    bilinear_streams,
    max_pool_streams,
    normalise_streams,
    softmax_streams,
    warn_of_kink,
)

Streams = dict[Derivative, str]
"""The nodes that hold derivatives of a node; those that are zero are missing."""


def differentiate(
    graph: ModelGraph, wanted: Sequence[Derivative], names: Sequence[str] = ()
) -> ModelGraph:
    """The graph whose output is ``[u | wanted_1 u | wanted_2 u | …]``, ``K (1 + len(wanted))`` features.

    ``wanted`` count the features of all inputs of real numbers, one input after the other; ``names`` are what
    the features are called in names of nodes (``u__x__y``), by default after their inputs. Where a derivative
    is zero, so is the output.

    before::

        x = input 0 : [2]     h = affine[fc](x)     u = tanh(h)     z = output(u)

    after, for ``∂/∂x0``::

        h__x0 = affine[fc](x__x0) without bias      u__x0 = (1 - u²) h__x0
        z     = output([u | u__x0])

    Raises :class:`~gncompile.errors.CompileError` for features that there are not, and for nodes that have no
    rule. Warns (:class:`~gncompile.errors.KinkWarning`) of a derivative of a jump, as the second one of a ReLU:
    it is taken as what it is almost everywhere.
    """
    graph = fuse_pointwise(graph)  # a chain of functions is derived as one
    return Differentiation(graph, tuple(wanted), names).result()


def differentiated(
    traced: TracedModel, wanted: Sequence[Derivative], names: Sequence[str] = ()
) -> TracedModel:
    """:func:`differentiate` of a traced model, which keeps its tensors."""
    if traced.trunk is not None:
        raise CompileError(
            "the inputs of the network reach what is compiled through a frozen part that runs as it is",
            where=traced.name,
            instead="use operators that have rules in the frozen part too, so that it can be differentiated",
        )
    return traced.with_graph(differentiate(traced.graph, wanted, names))


class Differentiation:
    """One walk along the graph; ``streams`` are those of the nodes passed so far."""

    def __init__(
        self, graph: ModelGraph, wanted: tuple[Derivative, ...], names: Sequence[str]
    ) -> None:
        self.graph, self.wanted = graph, wanted
        self.nodes = {node.name: node for node in graph if not isinstance(node.op, Output)}
        self.names, self.first = _features(graph, names)
        for number_ in sorted({i for each in wanted for index, _ in each.terms for i in index}):
            if not 0 <= number_ < len(self.names):
                raise CompileError(
                    f"there is no input feature {number_}",
                    where=f"the network takes {len(self.names)}: {', '.join(self.names)}",
                    instead="count the features of all inputs of real numbers from 0",
                )
        self.labels = self._labels()
        self.needed = _needed(graph, wanted)
        self.streams: dict[str, Streams] = {}
        self.stacked: dict[tuple[str, ...], str] = {}

    def result(self) -> ModelGraph:
        for node in self.graph:
            if not isinstance(node.op, Output):
                self.visit(node)
        output = self.graph.output
        (u,) = output.inputs
        return self._joined(output, u)

    def _joined(self, output: Node, u: str) -> ModelGraph:
        size, streams = output.size, self.streams[u]
        inputs = [u, *(streams[d] for d in self.wanted if d in streams)]
        index: list[int] = list(range(size))
        for d in self.wanted:
            first = inputs.index(streams[d]) * size if d in streams else None
            index += [-1] * size if first is None else range(first, first + size)
        shape = (len(index),)
        joined = self.add(f"{u}__streams", Select(tuple(index)), inputs, shape, output)
        end = Node(output.name, Output(), (joined,), shape, output.origin)
        graph = remove_dead_nodes(ModelGraph([*self.nodes.values(), end]))
        graph.check()
        return graph

    # --- names and nodes ------------------------------------------------------------------------------

    def _labels(self) -> dict[Derivative, str]:
        """What is behind the name of a node: ``__x__y``, and ``__sum1`` for sums that have no short name."""
        labels: dict[Derivative, str] = {}
        for each in closed(self.wanted):
            if len(each.terms) == 1:
                labels[each] = "".join(f"__{self.names[i]}" for i in each.terms[0][0])
            else:
                sums = sum(len(d.terms) > 1 for d in labels)
                labels[each] = f"__sum{sums + 1}"
        return labels

    def add(
        self, label: str, op: Op, inputs: Sequence[str], shape: tuple[int, ...], of: Node
    ) -> str:
        """A new node that stands where ``of`` does in the user's model."""
        name, count = label, 1
        while name in self.nodes:
            count += 1
            name = f"{label}_{count}"
        self.nodes[name] = Node(name, op, tuple(inputs), shape, of.origin)
        return name

    def pointwise(
        self, label: str, e: Expr, of: Node, constants: Mapping[Symbol, str] | None = None
    ) -> str | None:
        """A node of this expression in values; nothing where it is zero, no new one where it is a value."""
        e, constants = stable(e), constants or {}
        if e == 0:
            return None
        if e.is_Symbol and e not in constants:
            return str(e)
        free = sorted(e.free_symbols, key=lambda s: s.name)
        arguments = tuple(s for s in free if s not in constants)
        op = Pointwise(e, arguments, tuple((s, constants[s]) for s in free if s in constants))
        inputs = [s.name for s in arguments]
        return self.add(label, op, inputs, self.nodes[inputs[0]].shape, of)

    # --- the rules ------------------------------------------------------------------------------------

    def visit(self, node: Node) -> None:
        """The streams of a node, from those of its inputs."""
        self.nodes[node.name] = node
        self.needed.setdefault(node.name, closed(self.wanted))
        moving = isinstance(node.op, Input) or any(self.streams[name] for name in node.inputs)
        self.streams[node.name] = self._streams(node) if moving and self.needed[node.name] else {}

    def _streams(self, node: Node) -> Streams:
        match node.op:
            case Input():
                return self._input(node)
            case Pointwise():
                return self._pointwise(node)
            case Affine():
                return self._affine(node)
            case Select():
                return self._select(node)
            case Bilinear():
                return bilinear_streams(self, node)
            case Softmax():
                return softmax_streams(self, node)
            case Normalise():
                return normalise_streams(self, node)
            case MaxPool():
                return max_pool_streams(self, node)
            case FixedLinear() | Centre() | SumPool() | Convolution() | ConvolutionTransposed():
                return self._linear(node)
        raise CompileError(
            f"the node {node.name} = {describe(node)} cannot be differentiated with respect to inputs: "
            f"nodes of kind {type(node.op).__name__} have no rule for that",
            where=str(node.origin),
            instead="write it with functions, products and layers that the compiler knows",
        )

    def symbols(self, name: str) -> dict[Derivative, Symbol]:
        """The streams of a node, as expressions have them."""
        return {d: symbol_of(stream) for d, stream in self.streams[name].items()}

    def _input(self, node: Node) -> Streams:
        """Rows of constants, one-hot where one feature alone is meant."""
        first = self.first.get(node.name)
        if first is None:
            return {}
        made: dict[float, str] = {}
        found: Streams = {}
        for d in self.needed[node.name]:
            slopes = {index[0] - first: w for index, w in d.terms if len(index) == 1}
            slopes = {i: w for i, w in slopes.items() if 0 <= i < node.size}
            if not slopes:
                continue
            for w in slopes.values():
                if w not in made:
                    made[w] = self._constant(node, w)
            values = list(dict.fromkeys(slopes.values()))
            index = [values.index(slopes[i]) if i in slopes else -1 for i in range(node.size)]
            label = f"{node.name}{self.labels[d]}"
            inputs = [made[w] for w in values]
            found[d] = self.add(label, Select(tuple(index)), inputs, node.shape, node)
        return found

    def _constant(self, node: Node, value: float) -> str:
        """A node of one feature that is this number."""
        one = self.add(f"{node.name}__first", Select((0,)), [node.name], (1,), node)
        constant = Pointwise(number(value), (symbol_of(one),))
        return self.add(f"{node.name}__constant", constant, [one], (1,), node)

    def _linear(self, node: Node) -> Streams:
        op = replace(node.op, bias=None) if isinstance(node.op, LayerOp) else node.op
        known = self.streams[node.inputs[0]]
        return {
            d: self.add(f"{node.name}{self.labels[d]}", op, [known[d]], node.shape, node)
            for d in self.needed[node.name]
            if d in known
        }

    def _affine(self, node: Node) -> Streams:
        """All streams side by side as places of one product."""
        (source,) = node.inputs
        known = self.streams[source]
        present = [d for d in self.needed[node.name] if d in known]
        if len(present) < 2:
            return self._linear(node)
        assert isinstance(node.op, Affine)
        op = replace(node.op, bias=None, places=node.op.places * len(present))
        x = self._side_by_side(source, [known[d] for d in present])
        h = self.add(f"{node.name}__streams", op, [x], (len(present), *node.shape), node)
        parts = [range(i * node.size, (i + 1) * node.size) for i in range(len(present))]
        return {
            d: self.add(f"{node.name}{self.labels[d]}", Select(tuple(part)), [h], node.shape, node)
            for d, part in zip(present, parts, strict=True)
        }

    def _side_by_side(self, source: str, streams: list[str]) -> str:
        """One node for all layers that read the same."""
        key, of = tuple(streams), self.nodes[source]
        if key not in self.stacked:
            index, shape = tuple(range(len(key) * of.size)), (len(key), *of.shape)
            self.stacked[key] = self.add(f"{source}__streams", Select(index), key, shape, of)
        return self.stacked[key]

    def _select(self, node: Node) -> Streams:
        assert isinstance(node.op, Select)
        sizes = [self.nodes[name].size for name in node.inputs]
        starts = list(accumulate(sizes, initial=0))
        found: Streams = {}
        for d in self.needed[node.name]:
            moved: list[str] = []
            places = [-1] * starts[-1]  # of each feature of the inputs among those of their streams
            width = 0
            for name, start, size in zip(node.inputs, starts, sizes, strict=False):
                if d in self.streams[name]:
                    moved.append(self.streams[name][d])
                    places[start : start + size] = range(width, width + size)
                    width += size
            index = tuple(places[i] if i >= 0 else -1 for i in node.op.index)
            if any(i >= 0 for i in index):
                label = f"{node.name}{self.labels[d]}"
                found[d] = self.add(label, Select(index), moved, node.shape, node)
        return found

    def _pointwise(self, node: Node) -> Streams:
        op = named_after_values(node)
        inner = [self.symbols(name) for name in node.inputs]
        label = node.name
        while any(name.startswith(f"{label}__d") for name in self.nodes):
            label += "_"
        partials = Partials(op.expression, op.arguments, symbol_of(node.name), label)
        found = {d: chain(d, partials, inner) for d in self.needed[node.name]}
        if partials.crossed:
            warn_of_kink(node)
        named, found = inlined(partials.named, found)
        constants = dict(op.constants)
        for symbol, e in named.items():
            self.pointwise(symbol.name, e, node, constants)
        return self.nodes_of(node.name, found, node, constants)

    def nodes_of(
        self,
        label: str,
        found: Mapping[Derivative, Expr],
        of: Node,
        constants: Mapping[Symbol, str] | None = None,
    ) -> Streams:
        """Nodes of these expressions, named after ``label``."""
        named = {
            d: self.pointwise(f"{label}{self.labels[d]}", e, of, constants)
            for d, e in found.items()
        }
        return {d: name for d, name in named.items() if name is not None}


def _features(graph: ModelGraph, names: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """What the features of all inputs of real numbers are called, and the number of each input's first."""
    called: list[str] = []
    first: dict[str, int] = {}
    for node in graph.inputs:
        if not is_whole(node.op):
            first[node.name] = len(called)
            one = node.size == 1
            called += [node.name if one else f"{node.name}{i}" for i in range(node.size)]
    if names and len(names) != len(called):
        raise CompileError(
            f"{len(names)} names are given for {len(called)} input features",
            instead="name each of them once, in order",
        )
    return [identifier(name) for name in names] or called, first


def _needed(graph: ModelGraph, wanted: tuple[Derivative, ...]) -> dict[str, tuple[Derivative, ...]]:
    """Which derivatives of each node the wanted ones are made of; none of what does not reach the output."""
    needed: dict[str, set[Derivative]] = {node.name: set() for node in graph}
    needed[graph.output.name] = set(wanted)
    for node in reversed(list(graph)):
        below = needed[node.name]
        if not isinstance(node.op, _LINEAR) and not _is_affine(node):
            below = set(closed(tuple(below)))
        for source in node.inputs:
            needed[source] |= below
    order = {d: i for i, d in enumerate(closed(wanted))}
    return {name: tuple(sorted(each, key=order.__getitem__)) for name, each in needed.items()}


_LINEAR = (
    Output, Select, Affine, FixedLinear, Centre, SumPool, MaxPool, Convolution, ConvolutionTransposed,
)  # fmt: skip


def _is_affine(node: Node) -> bool:
    """Whether a pointwise node is affine in its inputs together: a sum, a scaling."""
    if not isinstance(node.op, Pointwise):
        return False
    return is_affine(node.op.expression, node.op.arguments)
