"""The compiled step node by node: which values of the program belong to which node of the model graph.

Every instruction knows the node it works for: the value h, x or a, the slopes b, vectors passed backwards
g, s and c, blocks of the recursion G, tangents r. What works for a layer as a whole (inverses, direction,
update) is shown with its affine node, and what is left (the loss, the step size) on the page of the loss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from ...base.untrusted import slug
from ...emit.layout import Statement
from ...emit.step_source import StepSource
from ...graph.layers import Affine, Parameter
from ...graph.nodes import FixedLinear, Input, Node, Output, Pointwise, Select
from ...program import operations as ir
from ...program.costs import Cost, total
from ..formulas import Equation
from ..function_names import function_text
from ..readback import PARTS, REPEATS, Readback, Row, in_units

HIDDEN = (*REPEATS, "restore", "reject", "columns_begin")
"""Phases whose formulas repeat others or only copy."""

TITLES = {"loss": "Loss", **PARTS}


@dataclass(frozen=True)
class Views:
    """All nodes of a compiled step; ``source`` is its emitted form, ``title`` names the network."""

    read: Readback
    source: StepSource
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
        layers = {name: layer.node.name for name, layer in self.read.graph.trained.items()}
        work = (i for i in self.read.program if not isinstance(i.op, ir.Leaf))
        return {i.name: i.origin.node or layers.get(i.origin.layer, "") for i in work}

    # --- one node; "" is what they share --------------------------------------------------------------

    def values(self, name: str) -> list[str]:
        """The values shown with a node, in program order."""
        return [i.name for i in self.read.program if self.owners.get(i.name) == name]

    def sections(self, name: str) -> list[tuple[str, list[Equation]]]:
        """Headings and equations of a node's values, part by part."""
        parts: dict[str, list[str]] = {}
        for value in self.values(name):
            parts.setdefault(self.read.program[value].origin.role, []).append(value)
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
        return self.source.of(self.values(name))

    def stored(self, node: Node) -> str:
        """The forward value: its name, its bytes, and whether something outside the forward pass reads it."""
        name = self.read.program.nodes.get(node.name)
        if name is None:  # zeros that a recurrence begins with, say
            return "nothing: what follows does not read it"
        value = self.read.program[name]
        size = self.read.costs.elements(value.spec) * self.read.itemsize
        readers = [i for i in self.read.program.readers[value.name] if i.origin.role != "forward"]
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
        case Parameter(weight=weight):
            return weight
        case Select(index):
            return f"select {len(index)}"
        case FixedLinear(matrix):
            return f"x Aᵀ, {matrix}"
        case Pointwise():
            return function_text(node)
        case Output():
            return "output z"
    return kind(node).lower()
