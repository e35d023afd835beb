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

A layer's output factor Ḡ is the block of its pre-activation with itself, or the columns' second moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import CompileError
from ..graph.layers import Layer, LayerOp
from ..graph.nodes import Node, describe
from ..program.builder import Factor, Value
from .forward import Forward
from .jacobians import Jacobian, Scaled
from .layer_rules import LayerRule
from .propagation import total, uses
from .representations import Representation


def input_moments(forward: Forward, into: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """``Q = E[ā āᵀ]`` with ``ā = [a, 1]`` where the bias is trained, by trainable layer.

    ``into``: values of an earlier phase to overwrite, once where layers share their input.
    """
    moments: dict[str, Value] = {}
    written: dict[Value, Value] = {}
    for name, layer in forward.graph.layers.items():
        target = into[name] if into else None
        if target in written:
            moments[name] = written[target]
            continue
        parts, alone = [], len(layer.straight) == 1
        for node, rule in uses(forward, layer.straight):
            with forward.work_for(node.name):
                x = forward.values[node.inputs[0]] if node.inputs else None
                only = target if alone else None
                parts.append(rule.input_moment(x, layer, f"Q_{node.name}", only))
        summed = None if alone else target
        moments[name] = total(forward, layer, parts, f"Q_{layer.node.name}", summed)
        if target:
            written[target] = moments[name]
    return moments


def column_moments(
    forward: Forward, columns: Mapping[str, Value], layers: Collection[str]
) -> dict[str, Value]:
    """``Ḡ = (1/(N S)) Σ_s C_sᵀ C_s`` over S places for those of ``layers`` that the columns reach."""
    moments: dict[str, Value] = {}
    for name, layer in forward.graph.layers.items():
        parts = []
        for node, rule in uses(forward, layer.straight):
            if name in layers and node.name in columns:
                with forward.work_for(node.name):
                    c = columns[node.name]
                    parts.append(rule.column_moment(c, layer, f"G_{node.name}"))
        if parts:
            moments[name] = mean_over_places(forward, layer, parts)
    return moments


def mean_over_places(forward: Forward, layer: Layer, parts: list[Value]) -> Value:
    """``Ḡ`` from the sums over places of all uses."""
    name = f"G_{layer.node.name}"
    with forward.work_for(layer.node.name):
        summed = parts[0] if len(parts) == 1 else forward.builder.add_blocks(parts, name)
        if layer.places == 1:
            return summed
        return forward.builder.scaled(summed, 1 / layer.places, f"{name}_mean")


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
    layers: Collection[str],
    vectors: Mapping[str, Value] | None = None,
) -> dict[str, Value]:
    """Pass the output Hessian ``seed`` back to the trainable ``layers``; returns Ḡ by layer.

    A cut of live tensors moves from the output to the inputs. A node leaves it once everything that reads
    it has left: linear nodes first, and all pointwise nodes that are ready together, so that a layer of
    gates and sums is averaged once. It goes no further than the last of ``layers``. ``vectors`` are the
    gradients that the Hessian's D terms need.
    """
    frontier = Frontier(forward, representation.composes, layers)
    graph = forward.graph
    output = graph.output.name
    blocks = Blocks(representation, frontier.place, {(output, output): seed})
    wanted = {node.name for name in layers for node in graph.layers[name].straight}
    parts: dict[str, list[Value]] = {}
    while blocks.tensors and wanted:
        leaving = _ready(frontier, blocks.tensors)
        for node in leaving:
            if node.name in wanted:
                wanted.remove(node.name)
                rule = forward.rule(node)
                assert isinstance(node.op, LayerOp)
                assert isinstance(rule, LayerRule)
                with forward.work_for(node.name):
                    block = representation.output_factor(blocks[node.name, node.name])
                    part = rule.block(block, f"G_{node.name}_places")
                parts.setdefault(node.op.layer, []).append(part)
        if wanted:
            blocks = blocks.without(leaving, frontier, vectors or {})
    return {
        name: mean_over_places(forward, layer, parts[name])
        for name, layer in graph.layers.items()
        if name in parts
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
    """The joint matrix over the live tensors, one block per pair, stored for pairs in graph order."""

    def __init__(
        self,
        representation: Representation,
        place: Mapping[str, int],
        blocks: dict[tuple[str, str], Value],
    ) -> None:
        self.representation = representation
        self.place = place
        self._blocks = blocks

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

    def __getitem__(self, pair: tuple[str, str]) -> Value:
        return self._blocks[pair]

    def without(
        self, leaving: list[Node], frontier: Frontier, vectors: Mapping[str, Value]
    ) -> Blocks:
        """The cut after ``leaving`` nodes have passed their blocks on to what they read."""
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
        return Blocks(self.representation, self.place, new)

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
