"""The first intermediate representation: a feedforward network as a DAG of linear and pointwise nodes.

Grammar (one :class:`Node` is ``name = op(inputs) : shape``), open to more kinds of :class:`Op`::

    op  ::=  Input(position)                       the network's inputs
          |  Affine(layer, weight, bias, places)   y_s = x_s Wᵀ + b         one input
          |  Parameter(layer, weight)              a row that all samples share; no input
          |  Select(index, fill)                   y_j = [x_1|x_2|…]_index[j], or ``fill`` where index = -1
          |  FixedLinear(matrix, before, after)    y = x (I ⊗ A ⊗ I)ᵀ, A a constant   one input
          |  Pointwise(expression, arguments,      y = φ(x_1, …, x_k; c_1, …), elementwise
                       constants)
          |  Centre(places)                        y_s = x_s − mean(x_s)
          |  Normalise(places, eps)                y_s = x_s / √(mean(x_s²) + eps), or by its length
          |  Softmax(places, log)                  softmax of x_s, or its logarithm
          |  Bilinear(batch, rows, inner, …)       Y_b = A_b B_b            two inputs
          |  Interpolate(grid, channels, of)       y = T(u, v), between the points of a constant grid
          |  Output()                              marks the network output z; one input

Every tensor is a batch of flat feature vectors ``[N, size]``; ``shape`` keeps the user's per-sample shape
for error texts and printing. Reshapes are therefore no nodes at all; concatenation, slicing, permutation,
padding and expansion are all a :class:`Select`. Sums, products, gates, scalings and batch norm in
evaluation mode are :class:`Pointwise`, given by one sympy expression.

The graph holds names, never tensors: :class:`TracedModel` pairs it with the tensors behind the names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import networkx as nx

from ..errors import InternalError
from .layers import Layer, layers_of, vectors_of
from .nodes import Input, Node, Output, Pointwise, describe

if TYPE_CHECKING:
    import torch

    from .trunk import Trunk


class ModelGraph:
    """An immutable DAG of :class:`Node` in a deterministic topological order.

    Wraps a :class:`networkx.DiGraph`; passes use the methods here and never the raw dictionaries.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = {node.name: node for node in nodes}
        if len(self._nodes) != len(nodes):
            raise InternalError("two nodes of a ModelGraph share a name")
        dag = nx.DiGraph()
        dag.add_nodes_from(self._nodes)
        for node in nodes:
            for source in node.inputs:
                if source not in self._nodes:
                    raise InternalError(f"node {node.name!r} reads the undefined value {source!r}")
                dag.add_edge(source, node.name)
        if not nx.is_directed_acyclic_graph(dag):
            raise InternalError("a ModelGraph must be acyclic")
        place = {name: position for position, name in enumerate(self._nodes)}
        self._order = tuple(nx.lexicographical_topological_sort(dag, key=place.__getitem__))
        self._place = {name: position for position, name in enumerate(self._order)}
        self._dag = dag

    def __iter__(self) -> Iterator[Node]:
        return (self._nodes[name] for name in self._order)

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelGraph) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def dag(self) -> nx.DiGraph:
        """A copy of the underlying networkx graph; its node names are this graph's names."""
        return self._dag.copy()

    @cached_property
    def output(self) -> Node:
        """The single :class:`Output` node."""
        return next(node for node in self if isinstance(node.op, Output))

    @cached_property
    def inputs(self) -> list[Node]:
        """The :class:`Input` nodes in the order the model takes them."""
        found = {node.op.position: node for node in self if isinstance(node.op, Input)}
        return [found[position] for position in sorted(found)]

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Trainable layers that have curvature factors, by name, in the topological order of first uses."""
        found = layers_of(self, self._sizes)
        return {name: layer for name, layer in found.items() if name not in self.first_order}

    @cached_property
    def computed(self) -> dict[str, Layer]:
        """Layers whose weight is computed of parameters, by name."""
        return layers_of(self, self._sizes, computed=True)

    @cached_property
    def first_order(self) -> dict[str, Layer]:
        """The parameters that weights are computed of, which a first-order rule trains, by name."""
        return vectors_of(self)

    @cached_property
    def trained(self) -> dict[str, Layer]:
        """All that is trained: the layers with factors, then the parameters without."""
        return {**self.layers, **self.first_order}

    @property
    def places(self) -> int:
        """At how many places of a sample a weight is applied at most."""
        return max((layer.places for layer in self.layers.values()), default=1)

    @cached_property
    def frozen(self) -> dict[str, Layer]:
        """Layers whose weight is not trained, by name."""
        return layers_of(self, self._sizes, trainable=False)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {node.name: node.size for node in self}

    def consumers(self, name: str) -> list[Node]:
        """Nodes that read ``name``, in topological order, each once."""
        readers = sorted(self._dag.successors(name), key=self._place.__getitem__)
        return [self._nodes[reader] for reader in readers]

    def replace(self, *changed: Node, without: tuple[str, ...] = ()) -> ModelGraph:
        """A new graph with nodes of the same names replaced and others left out."""
        new = {node.name: node for node in changed}
        return ModelGraph([new.get(n.name, n) for n in self if n.name not in without])

    def check(self) -> None:
        """Raise :class:`InternalError` unless sizes, arities and roles agree; cheap, run after each pass."""
        outputs = [node for node in self if isinstance(node.op, Output)]
        if len(outputs) != 1:
            raise InternalError(f"a ModelGraph has one Output node, this one has {len(outputs)}")
        for node in self:
            sizes = [self[name].size for name in node.inputs]
            if not node.op.fits(node.size, sizes):
                found = f"node {node.name!r} = {describe(node)}"
                raise InternalError(f"{found} does not fit inputs of sizes {sizes}")
            terminal = isinstance(node.op, Input | Output)
            if not terminal and not self.consumers(node.name):
                raise InternalError(f"node {node.name!r} is computed but never used")

    def to_text(self) -> str:
        """One aligned line a node: name, operation, inputs, size, module path."""
        rows = [
            (node.name, describe(node), str(list(node.shape)), node.origin.module) for node in self
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            f"{n:<{widths[0]}} = {d:<{widths[1]}} : {s:<{widths[2]}} {m}".rstrip()
            for n, d, s, m in rows
        )

    __repr__ = to_text

    def to_dot(self) -> str:
        """The graph in Graphviz's DOT language: boxes for linear nodes, ellipses for pointwise ones."""
        lines = ["digraph model {", "  rankdir=LR;", '  node [fontname="sans-serif", fontsize=11];']
        for node in self:
            shape = "ellipse" if isinstance(node.op, Pointwise) else "box"
            label = f"{node.name}\\n{describe(node)}\\n{list(node.shape)}".replace('"', "'")
            lines.append(f'  "{node.name}" [shape={shape}, label="{label}"];')
        for node in self:
            lines.extend(f'  "{source}" -> "{node.name}";' for source in node.inputs)
        return "\n".join([*lines, "}"])


@dataclass(frozen=True)
class TracedModel:
    """A :class:`ModelGraph` and the user's own tensors behind its names.

    ``parameters`` maps parameter names to the model's parameters (shared, not copied); ``constants`` maps
    constant names to tensors: frozen scales and shifts ``[size]``, fixed matrices ``[out, in]``.
    """

    graph: ModelGraph
    parameters: Mapping[str, torch.Tensor]
    constants: Mapping[str, torch.Tensor]
    name: str = "model"
    trunk: Trunk | None = None
    """The frozen part that makes the graph's inputs of the network's, where there is one."""

    @property
    def inputs(self) -> Sequence[Node]:
        """What the network takes, in order: the graph's inputs, or those of its trunk."""
        if self.trunk is None:
            return self.graph.inputs
        named = enumerate(self.trunk.shapes.items())
        return [Node(name, Input(position), (), shape) for position, (name, shape) in named]

    def with_graph(self, graph: ModelGraph) -> TracedModel:
        """The same tensors with another graph."""
        return replace(self, graph=graph)
