"""The compiled step node by node: which values of the program belong to which node of the model graph.

A value is named after its quantity and its node, ``a_fc1`` or ``r2_fc1``, so it is shown with that node:
the value h, x or a, the slopes b, vectors passed backwards g, s and c, blocks of the recursion G, tangents r.
What works for a layer as a whole (factors, inverses, direction, update) is shown with its affine node, and
what is left (the loss, the step size) on the page of the loss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from ...base.untrusted import slug
from ...graph.model_graph import Affine, FixedLinear, Input, Node, Pointwise, Select
from ...program import step_program as ir
from ...program.costs import SHARED_PHASES, Cost, forward_values, total
from ..formulas import Equation
from ..readback import PARTS, REPEATS, Readback, Row, Statement, function_text, in_units

HIDDEN = (*REPEATS, "restore", "reject", "columns_begin")
"""Phases whose formulas repeat others or only copy."""

TITLES = {
    "loss": "Loss",
    **PARTS,
    "quadratic": "R-operator",
    "layer_quadratic": "R-operator, while step sizes are chosen for each layer",
    "curvature": "Curvature",
    "columns": "Curvature, column by column",
    "update": "Update",
    "evaluate": "Loss after the update",
    "judge": "Change of the loss, actual over predicted",
    "adapt": "Damping",
    "judge_trial": "Change of the loss in the first steps, actual over predicted",
    "search": "Damping in the first steps",
}


@dataclass(frozen=True)
class Views:
    """All nodes of a compiled step; ``source`` is its emitted text, ``title`` names the network."""

    read: Readback
    source: str
    title: str

    @cached_property
    def nodes(self) -> list[Node]:
        return list(self.read.graph)

    def file(self, node: Node) -> str:
        """The name of the node's page; the number makes it unique whatever the file system."""
        number = self.nodes.index(node)
        return f"{number:02d}-{slug(re.sub(r'[^A-Za-z0-9_-]', '-', node.name))}.html"

    @cached_property
    def owners(self) -> dict[str, str]:
        """For every instruction the node it is shown with; ``""`` for what the nodes share."""
        layers = {layer: node.name for layer, node in self.read.graph.layers.items()}
        forward = {value: name for name, value in reversed(self._forward.items())}
        own = {}
        for name, (layer, part) in self.read.owners.items():
            shared = part in ("loss", *SHARED_PHASES)
            named = "" if shared else forward.get(name) or self._named_after(name)
            own[name] = named or ("" if shared else layers.get(layer, ""))
        return self._nearest_reader(own)

    def _nearest_reader(self, owners: dict[str, str]) -> dict[str, str]:
        """Nameless parts of a node's formula are shown with it, if nothing else reads them."""
        readers: dict[str, set[str]] = {}
        for i in reversed(self.read.program.instructions):
            near = readers.get(i.name, set())
            if i.name in owners and not isinstance(i.op, ir.VIEWS):
                named = i.into or i.comment or i.name in self._results or self._named_after(i.name)
                if not named and len(near) == 1 and owners[i.name]:
                    owners[i.name] = next(iter(near)) or owners[i.name]
                near = {owners[i.name]}
            for name in i.inputs:
                readers.setdefault(name, set()).update(near)
        return owners

    @cached_property
    def _results(self) -> frozenset[str]:
        return frozenset(self.read.program.results.values())

    @cached_property
    def _forward(self) -> dict[str, str]:
        return forward_values(self.read.program, self.read.graph)

    @cached_property
    def _by_identifier(self) -> dict[str, str]:
        """Node names as the builder writes them into names of values."""
        return {re.sub(r"\W", "_", node.name): node.name for node in self.nodes}

    def _named_after(self, value: str) -> str:
        """The node in a value's name, without what tells values of one name apart, as in ``b_mul_F_2``."""
        quantity, _, rest = value.partition("_")
        if not re.fullmatch(r"[abcghsxG]|r\d+", quantity):
            return ""
        while rest not in self._by_identifier and re.search(r"_(\d+|[FQS])$", rest):
            rest = rest.rpartition("_")[0]
        return self._by_identifier.get(rest, "")

    # --- one node; "" is what they share --------------------------------------------------------------

    def values(self, name: str) -> list[str]:
        """The values shown with a node, in program order."""
        return [i.name for i in self.read.program if self.owners.get(i.name) == name]

    def sections(self, name: str) -> list[tuple[str, list[Equation]]]:
        """Headings and equations of a node's values, part by part."""
        parts: dict[str, list[str]] = {}
        for value in self.values(name):
            parts.setdefault(self.read.owners[value][1], []).append(value)
        order = [*(p for p in TITLES if p in parts), *(p for p in parts if p not in TITLES)]
        shown = [(part, parts[part]) for part in order if part not in HIDDEN]
        found = [(TITLES.get(p, p.capitalize()), self.read.formulas.equations(v)) for p, v in shown]
        return [(title, equations) for title, equations in found if equations]

    def costs(self, name: str) -> dict[str, Cost]:
        """Cost of a node's values by phase, all runs of a step that runs it."""
        costs: dict[str, Cost] = {}
        for value in self.values(name):
            instruction = self.read.program[value]
            runs = self.read.costs.runs(instruction.phase)
            cost = self.read.costs.of(instruction) * runs
            costs[instruction.phase] = costs.get(instruction.phase, Cost()) + cost
        return costs

    def cost_rows(self, name: str) -> list[Row]:
        """The costs as a table, phases without any left out."""
        costs = {phase: cost for phase, cost in self.costs(name).items() if cost != Cost()}
        rows = [[phase, self.read.when(phase), *in_units(cost)] for phase, cost in costs.items()]
        return [["phase", "when", "FLOPs", "traffic"], *rows,
                ["all of them once", "", *in_units(total(costs.values()))]]  # fmt: skip

    def statements(self, name: str) -> list[Statement]:
        """The lines of the emitted source that serve the node."""
        return self.read.statements(set(self.values(name)), self.source)

    def stored(self, node: Node) -> str:
        """The forward value: its name, its bytes, and whether something outside the forward pass reads it."""
        value = self.read.program[self._forward[node.name]]
        size = self.read.costs.elements(value.spec) * self.read.itemsize
        readers = [
            i
            for i in self.read.program
            if value.name in i.inputs and self.read.owners.get(i.name, ("", ""))[1] != "forward"
        ]
        phases = list(
            dict.fromkeys(i.phase for i in readers if i.phase not in (*REPEATS, "restore"))
        )
        what = f"{value.name}, {value.spec}"
        if isinstance(value.op, ir.Leaf):
            return f"{what}: the batch itself"
        shared = (
            "" if value.name in self.values(node.name) else ", the same value as another node's"
        )
        kept = f"read again by {', '.join(phases)}" if phases else "read by the forward pass only"
        return f"{what}{shared}: {size:,} bytes for {self.read.batch} samples; {kept}"


def kind(node: Node) -> str:
    """The operation's name."""
    return {"FixedLinear": "Fixed linear"}.get(type(node.op).__name__, type(node.op).__name__)


def caption(node: Node) -> str:
    """The operation in a few characters, for the picture of the graph."""
    match node.op:
        case Input(position):
            return f"input {position}"
        case Affine(bias=bias, trainable=trainable):
            return ("x Wᵀ + b" if bias else "x Wᵀ") + ("" if trainable else ", frozen")
        case Select(index):
            return f"select {len(index)}"
        case FixedLinear(matrix):
            return f"x Aᵀ, {matrix}"
        case Pointwise():
            return function_text(node)
    return "output z"
