"""Curvature factors: one recursion, three representations.

What passes backwards through the graph is ``∂²E/∂s∂tᵀ`` without its second-derivative terms, in one of
three representations:

* :func:`pull_back_matrices` with :class:`~gncompile.derivation.representations.Averaged`: one block
  ``E[(∂z/∂s)ᵀ 𝓗_L (∂z/∂t)]`` per pair of live tensors, averaged over the batch at every pointwise layer. This
  is KFRA [BRB §3.3] with a frontier (docs/mathematics.md#kfra-on-any-graph); on a chain it is
  ``Ḡ_λ = (W_{λ+1}ᵀ Ḡ_{λ+1} W_{λ+1}) ⊙ E[b bᵀ]``.
* :func:`pull_back_matrices` with :class:`~gncompile.derivation.representations.PerSample`: the same blocks
  for every sample. Exact, ``[N, d, d]`` per block, and with the second-derivative terms the Hessian: the
  oracle for small networks.
* :func:`~gncompile.derivation.propagation.pull_back` on columns ``[S, N, K]`` with ``Σ_s c_s c_sᵀ = 𝓗_L``:
  exact (KFLR), sampled (KFAC), or the training gradient (empirical).

A layer's output factor Ḡ is the block of its pre-activation with itself, or the columns' second moment; what
there is to several places and uses of one weight, ``sharing`` says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..errors import CompileError
from ..graph.layers import Layer, LayerOp
from ..graph.nodes import Node, describe
from ..program.builder import Factor, Value
from .forward import Forward
from .jacobians import Jacobian, Scaled
from .propagation import layer_rule
from .representations import Representation
from .sharing import Sharing


def obstacles(forward: Forward) -> dict[str, Node]:
    """What KFRA cannot pass: for each layer below such a node the first on the way from the output.

    A layer's block needs an average of every node between the layer and the output.
    """
    reached, ended = {forward.graph.output.name}, dict[str, Node]()
    for node in reversed(list(forward.graph)):
        for i, source in enumerate(node.inputs):
            moves = node.name in reached and source in forward.active
            jacobian = forward.jacobian(node, i) if moves else None
            if jacobian is None:
                continue
            reached.add(source)
            if node.name in ended:
                ended.setdefault(source, ended[node.name])
            elif not jacobian.averages:
                ended.setdefault(source, node)
    uses = ((name, use.name) for name, layer in forward.graph.layers.items() for use in layer.uses)
    return {layer: ended[use] for layer, use in uses if use in ended}


def no_average(layers: Collection[str], node: Node) -> CompileError:
    """The error about KFRA asked for layers below a node that has no average."""
    return CompileError(
        f"'kfra' of {', '.join(layers)} needs an average of {describe(node)}, "
        f"and nodes of kind {type(node.op).__name__} have none",
        where=str(node.origin),
        instead="use 'kfac_rp' or 'kflr' for these layers, which pass columns back, or define half and "
        "average of the node's Jacobian",
    )


LONGEST = 4
"""Pointwise nodes in a row that are composed. An LSTM's cells are a chain as long as time, and blocks are
kept for every pair of tensors that such a chain reads."""


class Frontier:
    """The dependence structure that the recursion walks: who reads whom, and with which Jacobians.

    With composed slopes the tensors of the recursion are the network's *roots* (values of linear nodes and
    inputs) and the pointwise results that a linear node or the loss reads; pointwise nodes in between are
    composed by the chain rule, sample by sample, before anything is averaged, :data:`LONGEST` in a row.
    Only what moves with ``layers`` takes part: their factors need no other blocks.
    """

    def __init__(self, forward: Forward, composes: bool, layers: Collection[str]) -> None:
        self.forward = forward
        self._moving = forward.moved_by(layers)
        self.graph = forward.graph
        self.place = {node.name: i for i, node in enumerate(self.graph)}
        self._composes = composes
        self._jacobians: dict[str, dict[str, Jacobian]] = {}
        self._ends = self._chain_ends()
        self.readers: dict[str, set[str]] = {}
        for node in self.graph:
            if self._is_tensor(node):
                for source in self.jacobians(node):
                    self.readers.setdefault(source, set()).add(node.name)

    def elementwise(self, node: Node) -> bool:
        """Whether the node is a slope a sample: such nodes are composed, and leave the cut together."""
        return self.forward.rule(node).elementwise

    def _chain_ends(self) -> set[str]:
        """Pointwise nodes with :data:`LONGEST` others in a row before them: no slope goes on below."""
        before: dict[str, int] = {}
        for node in self.graph:
            longest = max((before[source] % LONGEST + 1 for source in node.inputs), default=0)
            before[node.name] = longest if self.elementwise(node) else 0
        return {name for name, count in before.items() if count == LONGEST}

    def _is_tensor(self, node: Node) -> bool:
        if not self.elementwise(node) or not self._composes or node.name in self._ends:
            return True
        return any(not self.elementwise(reader) for reader in self.graph.consumers(node.name))

    def jacobians(self, node: Node) -> dict[str, Jacobian]:
        """For each moving tensor that the node reads: the local Jacobian."""
        if node.name not in self._jacobians:
            self._jacobians[node.name] = self._derive(node)
        return self._jacobians[node.name]

    def _derive(self, node: Node) -> dict[str, Jacobian]:
        if self.elementwise(node):
            slopes = self._slopes(node)
            return {n: Scaled(self.forward.builder, b) for n, b in slopes.items() if b != 0.0}
        moving = {n: i for i, n in enumerate(node.inputs) if n in self._moving}
        found = {name: self.forward.jacobian(node, i) for name, i in moving.items()}
        return {name: jacobian for name, jacobian in found.items() if jacobian is not None}

    def _slopes(self, node: Node) -> dict[str, Factor]:
        """``∂y/∂x`` for every root x below a pointwise node (its own inputs if slopes are not composed)."""
        pending: dict[str, Factor] = {node.name: 1.0}
        roots: dict[str, Factor] = {}
        while pending:
            name = max(pending, key=self.place.__getitem__)
            outer, inner = pending.pop(name), self.graph[name]
            for i, source in enumerate(inner.inputs):
                moving = source in self._moving
                local = self.forward.jacobian(inner, i) if moving else None
                if local is None or outer == 0.0:
                    continue
                assert isinstance(local, Scaled)
                with self.forward.work_for(name, source):
                    slope = self.forward.builder.times(outer, local.slope)
                    goes_on = self._composes and self._composes_through(self.graph[source], slope)
                    self._accumulate(pending if goes_on else roots, source, slope)
        return roots

    def _composes_through(self, source: Node, slope: Factor) -> bool:
        """Whether the chain rule goes on below a pointwise source.

        Not where the source is a tensor of the recursion itself and the slope down to it is a number (a
        sum): nothing is averaged on that way, and all paths then share the one average at the source.
        """
        summed = isinstance(slope, float) and self._is_tensor(source)
        return self.elementwise(source) and source.name not in self._ends and not summed

    def _accumulate(self, into: dict[str, Factor], name: str, slope: Factor) -> None:
        if name in into:
            slope = self.forward.builder.plus(into[name], slope)
        into[name] = slope


def pull_back_matrices(
    forward: Forward,
    seed: Value,
    representation: Representation,
    layers: Mapping[str, Layer],
    sharing: Mapping[str, Sharing],
    vectors: Mapping[str, Value] | None = None,
) -> dict[str, Value]:
    """Pass the output Hessian ``seed`` back to the trainable ``layers``; returns moments of their outputs.

    A cut of live tensors moves from the output to the inputs. A node leaves it once everything that reads
    it has left: linear nodes first, and all pointwise nodes that are ready together, so that a layer of
    gates and sums is averaged once. It goes no further than the last use of ``layers``. Where ``sharing``
    wants the blocks between uses of a layer, a use is followed after it has left, until all have.
    ``vectors`` are the gradients that the Hessian's D terms need.
    """
    uses = [node.op for layer in layers.values() for node in layer.uses]
    names = {op.layer for op in uses if isinstance(op, LayerOp)}
    frontier = Frontier(forward, representation.composes, names)
    graph = forward.graph
    output = graph.output.name
    blocks = Blocks(representation, frontier.place, {(output, output): seed})
    owner = {node.name: name for name, layer in layers.items() for node in layer.straight}
    wanted = set(owner)
    kept: dict[str, dict[tuple[str, str], Value]] = {}
    while blocks.tensors and wanted:
        leaving = _ready(frontier, blocks.tensors)
        reached = [node.name for node in leaving if node.name in wanted]
        for use in reached:
            wanted.remove(use)
            name = owner[use]
            with forward.work_for(use):
                for other, m in blocks.with_use(use, owner).items():
                    mean = representation.output_factor(m, other == use)
                    block = sharing[name].block(
                        layer_rule(forward, other), layer_rule(forward, use), mean
                    )
                    kept.setdefault(name, {})[other, use] = block
        pending = {owner[use] for use in wanted if sharing[owner[use]].across}
        follow = [use for use in (*blocks.rows, *reached) if owner[use] in pending]
        if wanted:
            blocks = blocks.without(leaving, frontier, vectors or {}, follow)
    return {
        name: sharing[name].block_moment(forward, layers[name], found)
        for name, found in kept.items()
    }


def _ready(frontier: Frontier, live: set[str]) -> list[Node]:
    """The nodes to leave next: the last ready linear node, else all ready pointwise nodes.

    A tensor is ready when no live tensor can still reach it; a reader that never became live (its slope is
    zero) does not hold it back.
    """
    waiting: set[str] = set()
    for name in sorted(frontier.place, key=frontier.place.__getitem__, reverse=True):
        above = frontier.readers.get(name, set())
        if any(reader in live or reader in waiting for reader in above):
            waiting.add(name)
    ready = [n for n in frontier.graph if n.name in live and n.name not in waiting]
    linear = [node for node in ready if not frontier.elementwise(node)]
    return linear[-1:] if linear else ready


class Blocks:
    """The joint matrix over the live tensors, one block per pair, stored for pairs in graph order.

    ``rows`` are blocks ``M[u, t]`` of uses u of layers that have left the cut, with every live t.
    """

    def __init__(
        self,
        representation: Representation,
        place: Mapping[str, int],
        blocks: dict[tuple[str, str], Value],
        rows: Mapping[str, Mapping[str, Value]] | None = None,
    ) -> None:
        self.representation = representation
        self.place = place
        self._blocks = blocks
        self.rows = rows or {}

    @property
    def tensors(self) -> set[str]:
        """Names of the live tensors."""
        return {name for pair in self._blocks for name in pair}

    def get(self, s: str, t: str) -> Value | None:
        """``M[s, t]``, or None where it is zero."""
        if self.place[s] <= self.place[t]:
            return self._blocks.get((s, t))
        mirrored = self._blocks.get((t, s))
        return None if mirrored is None else self.representation.transpose(mirrored)

    def with_use(self, use: str, owner: Mapping[str, str]) -> dict[str, Value]:
        """``M[u, use]`` for the use of a layer itself, and for those u of the same owner that have left."""
        left = {
            u: row[use] for u, row in self.rows.items() if owner[u] == owner[use] and use in row
        }
        return {use: self._blocks[use, use], **left}

    def without(
        self,
        leaving: list[Node],
        frontier: Frontier,
        vectors: Mapping[str, Value],
        follow: Iterable[str] = (),
    ) -> Blocks:
        """The cut after ``leaving`` nodes have passed their blocks on to what they read.

        ``follow`` are uses of layers that leave now or have left, whose rows are kept.
        """
        names = {node.name for node in leaving}
        jacobians = {node.name: frontier.jacobians(node) for node in leaving}
        entering = {source for js in jacobians.values() for source in js}
        stay = sorted((self.tensors - names) | entering, key=self.place.__getitem__)
        new: dict[tuple[str, str], Value] = {}
        for i, s in enumerate(stay):
            for t in stay[i:]:
                with frontier.forward.work_for(s, t):
                    terms = self._terms(s, t, jacobians)
                    if s in entering and t in entering:
                        terms += self._curved(s, t, leaving, frontier.forward, vectors)
                    if terms:
                        name = f"M_{s}_{t}" if s != t else f"G_{s}"
                        new[s, t] = self.representation.add(terms, name)
        rows = {use: self._row(use, stay, jacobians, frontier.forward) for use in follow}
        return Blocks(self.representation, self.place, new, rows)

    def _row(
        self,
        use: str,
        stay: list[str],
        jacobians: Mapping[str, Mapping[str, Jacobian]],
        forward: Forward,
    ) -> dict[str, Value]:
        """``M[u, t] + Σ_q M[u, q] J_qt`` over leaving q, for what stays."""
        live = {t: m for t in self.tensors if (m := self.get(use, t)) is not None}
        row, new = self.rows.get(use, live), {}
        for t in stay:
            name = f"M_{use}_{t}"
            with forward.work_for(use, t):
                terms = [row[t]] if t in row else []
                reading = [(row[q], js[t]) for q, js in jacobians.items() if q in row and t in js]
                terms += [self.representation.right(m, j, name) for m, j in reading]
                if terms:
                    new[t] = self.representation.add(terms, name)
        return new

    def _terms(
        self, s: str, t: str, jacobians: Mapping[str, Mapping[str, Jacobian]]
    ) -> list[Value]:
        """``M[s,t] + Σ_p J_psᵀ M[p,t] + Σ_q M[s,q] J_qt + Σ_pq J_psᵀ M[p,q] J_qt`` over leaving p, q."""
        rep, name = self.representation, f"M_{s}_{t}" if s != t else f"G_{s}"
        old = self.get(s, t)
        terms = [] if old is None else [old]
        into_s = [(p, js[s]) for p, js in jacobians.items() if s in js]
        into_t = [(q, js[t]) for q, js in jacobians.items() if t in js]
        if s == t:
            halves = [rep.left(j, m, name) for p, j in into_s if (m := self.get(p, t)) is not None]
            terms += [rep.plus_transpose(half) for half in halves]
            for i, (p, j) in enumerate(into_s):
                for q, k in into_s[i:]:
                    if (m := self.get(p, q)) is not None:
                        product = rep.both(j, m, k, name)
                        terms.append(product if p == q else rep.plus_transpose(product))
            return terms
        terms += [rep.left(j, m, name) for p, j in into_s if (m := self.get(p, t)) is not None]
        terms += [rep.right(m, k, name) for q, k in into_t if (m := self.get(s, q)) is not None]
        for p, j in into_s:
            for q, k in into_t:
                if (m := self.get(p, q)) is not None:
                    terms.append(rep.both(j, m, k, name))
        return terms

    def _curved(
        self, s: str, t: str, leaving: list[Node], forward: Forward, vectors: Mapping[str, Value]
    ) -> list[Value]:
        """Second-derivative terms of the leaving nodes that read both s and t."""
        terms = []
        for node in leaving:
            for i, x in enumerate(node.inputs):
                for j, y in enumerate(node.inputs):
                    if (x, y) == (s, t) and node.name in vectors:
                        g, rule = vectors[node.name], forward.rule(node)
                        term = self.representation.curve(rule, g, i, j)
                        terms += [] if term is None else [term]
        return terms
