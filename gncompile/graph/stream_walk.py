"""A walk along a graph that gives nodes their streams: nodes made, names given, what each node needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from sympy import Expr, Symbol

from ..base.names import free_name, identifier
from ..errors import CompileError
from ..functions.composition import is_affine
from ..functions.faa_di_bruno import Derivative, closed
from ..functions.stable_forms import stable
from .embedding import is_whole
from .fuse_pointwise import symbol_of
from .model_graph import ModelGraph
from .nodes import Input, Node, Op, Output, Pointwise, describe
from .reached import moved

Streams = dict[Derivative, str]
"""The nodes that hold derivatives of a node; those that are zero are missing."""


class Walk:
    """``nodes`` are those of the graph and the new ones; ``streams`` those of the nodes passed so far.

    ``rules`` give the streams of a kind of node; through the kinds in ``linear`` a derivative needs itself
    alone. ``kinks`` are the nodes of which a jump was derived.
    """

    def __init__(
        self,
        graph: ModelGraph,
        wanted: Sequence[Derivative],
        names: Sequence[str],
        rules: Mapping[type[Op], Rule],
        linear: tuple[type[Op], ...],
    ) -> None:
        self.wanted, self.rules = tuple(wanted), rules
        self.nodes = {node.name: node for node in graph if not isinstance(node.op, Output)}
        self.names, self.first = _features(graph, names)
        for feature in sorted({i for each in wanted for index, _ in each.terms for i in index}):
            if not 0 <= feature < len(self.names):
                raise CompileError(
                    f"there is no input feature {feature}",
                    where=f"the network takes {len(self.names)}: {', '.join(self.names)}",
                    instead="count the features of all inputs of real numbers from 0",
                )
        self.labels = self._labels()
        self.needed = _needed(graph, self.wanted, linear)
        self.streams: dict[str, Streams] = {}
        self.kinks: dict[str, Node] = {}

    def visit(self, node: Node) -> None:
        """The streams of a node, from those of its inputs."""
        self.nodes[node.name] = node
        self.needed.setdefault(node.name, closed(self.wanted))
        moving = isinstance(node.op, Input) or any(self.streams[name] for name in node.inputs)
        if not moving or not self.needed[node.name]:
            self.streams[node.name] = {}
            return
        if type(node.op) not in self.rules:
            raise CompileError(
                f"the node {node.name} = {describe(node)} cannot be differentiated with respect to inputs: "
                f"nodes of kind {type(node.op).__name__} have no rule for that",
                where=str(node.origin),
                instead="write it with functions, products and layers that the compiler knows",
            )
        self.streams[node.name] = self.rules[type(node.op)](self, node)

    def symbols(self, name: str) -> dict[Derivative, Symbol]:
        """The streams of a node, as expressions have them."""
        return {d: symbol_of(stream) for d, stream in self.streams[name].items()}

    def add(
        self, label: str, op: Op, inputs: Sequence[str], shape: tuple[int, ...], of: Node
    ) -> str:
        """A new node that stands where ``of`` does in the user's model."""
        name = free_name(label, self.nodes)
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


Rule = Callable[[Walk, Node], Streams]


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


def _needed(
    graph: ModelGraph, wanted: tuple[Derivative, ...], linear: tuple[type[Op], ...]
) -> dict[str, tuple[Derivative, ...]]:
    """Which derivatives of each node the wanted ones are made of; none of what does not reach the output."""
    moving = moved(graph, lambda node: isinstance(node.op, Input) and not is_whole(node.op))
    needed: dict[str, set[Derivative]] = {node.name: set() for node in graph}
    needed[graph.output.name] = set(wanted)
    for node in reversed(list(graph)):
        below = needed[node.name]
        if not isinstance(node.op, linear) and not _is_affine(node, moving):
            below = set(closed(tuple(below)))
        for source in node.inputs:
            needed[source] |= below
    order = {d: i for i, d in enumerate(closed(wanted))}
    return {name: tuple(sorted(each, key=order.__getitem__)) for name, each in needed.items()}


def _is_affine(node: Node, moving: Collection[str]) -> bool:
    """Whether a pointwise node is affine in those of its inputs that move: a sum, a scaling."""
    if not isinstance(node.op, Pointwise):
        return False
    pairs = zip(node.op.arguments, node.inputs, strict=True)
    return is_affine(node.op.expression, [symbol for symbol, name in pairs if name in moving])
