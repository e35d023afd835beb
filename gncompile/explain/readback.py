"""What can be read off a compiled program: the facts behind the text of ``explain`` and the HTML report.

Nothing here knows how the program was made: costs, owners, formulas and source lines come from its
instructions, so what is reported is what runs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..base.settings import AUTO, Settings
from ..base.tables import binary_size, count, engineering, listed, shortened
from ..derivation.forward import Forward
from ..derivation.piecewise_linear import rule_of
from ..derivation.sharing import shared_lines
from ..graph.layers import Layer, LayerOp
from ..graph.model_graph import ModelGraph, TracedModel
from ..graph.nodes import Node, Pointwise
from ..losses.vocabulary import Loss
from ..program.builder import ProgramBuilder
from ..program.costs import Cost, CostModel, columns_within, total
from ..program.ownership import shared_work
from ..program.phases import Repeat, Stage, first_steps, mean_runs, where_noise_leads
from ..program.reductions import is_joined
from ..program.schedule import Schedule
from ..program.specs import Structure
from ..program.step_program import StepProgram
from .formulas import Formulas
from .function_names import brief_text
from .methods import METHODS, RULES, UNCOVERED

SCALED = Structure.SCALED_IDENTITY
SHOWN = 12
"""Characters of the functions after a layer that a table shows."""
NAMED = 3
"""Layers of a method that are named one by one; the table of layers tells of all."""

REPEATS = ("predict", "whole_inputs", "trial", "plain_quadratic")
"""Phases whose formulas are those of others or some of them, on other samples or with other parameters."""
PARTS = {
    "forward": "Forward",
    "gradient": "Slopes and gradient",
    "input factor": "Input factor Q",
    "output factor": "Output factor Ḡ: the recursion's step",
    "average": "Running averages",
    "invert": "Damped inverses",
    "cg_begin": "Conjugate gradients: beginning",
    "cg_product": "Conjugate gradients: a product with the Gauss-Newton matrix",
    "direction": "Direction",
    "quadratic": "R-operator: the output's change along Δ (r1) and the last step δ (r2)",
    "acceleration": "Acceleration: the outputs' second derivative along the step, and what it adds to it",
    "layer_quadratic": "R-operator layer by layer, for a step size each",
    "compare": "Forward at the averaged parameters",
    "gradient_noise": "Noise of the gradient",
    "curvature": "Curvature",
    "columns": "Curvature, column by column",
    "average_parameters": "Average of the parameters",
    "update": "Update",
    "evaluate": "Loss after the update",
    "judge": "Change of the loss, actual over predicted",
    "adapt": "Damping",
    "judge_trial": "Change of the loss in the first steps, actual over predicted",
    "search": "Damping in the first steps",
    "reject": "After a step that is undone",
}
"""Headings of the parts of a layer's work, in the order they are shown."""

STATES = {
    "average": "parameters, averaged",
    "last_good": "parameters before the step",
    "step": "last step δ",
    "Q": "factors Q, averaged",
    "G": "factors Ḡ, averaged",
    "Q_inverse": "their inverses, Q⁻¹",
    "G_inverse": "their inverses, Ḡ⁻¹",
}
"""What states hold, in words."""

Row = list[str]


@dataclass(frozen=True)
class Readback:
    """A compiled step and what follows from it, for a mean step on ``batch`` samples.

    ``itemsize`` is the bytes of one number; ``order`` the launches, for the backend that has them. Tables are
    lists of rows, the first one with the headings.
    """

    traced: TracedModel
    loss: Loss
    settings: Settings
    program: StepProgram
    batch: int = 1000
    itemsize: int = 4
    order: Schedule | None = None

    @property
    def graph(self) -> ModelGraph:
        return self.traced.graph

    @cached_property
    def costs(self) -> CostModel:
        budget, program = self.settings.memory_budget, self.program
        columns = columns_within(program, self.batch, self.itemsize, budget)
        return CostModel(
            program, self.batch, self.itemsize, self.settings.rows(self.batch), columns
        )

    @cached_property
    def formulas(self) -> Formulas:
        return Formulas.of(self.program, self.graph)

    # --- tables ---------------------------------------------------------------------------------------

    @property
    def parameter_count(self) -> int:
        """Trained parameters of all layers."""
        return sum(self.parameters(layer) for layer in self.graph.trained.values())

    def head(self) -> list[str]:
        """Model, loss, method and what the costs refer to, a sentence each."""
        loss = self.loss
        given, features = (
            ", ".join(f"{node.name} {list(node.shape)}" for node in nodes)
            for nodes in (self.traced.inputs, self.graph.inputs)
        )
        return [
            f"{self.traced.name}: {count(len(self.graph.trained), 'trainable layer')}, "
            f"{self.parameter_count:,} trained parameters",
            *([f"frozen part, run as it is: {given} → {features}"] if self.traced.trunk else []),
            f"loss {loss.name}: {loss.scale}",
            *(f"{name} {text}" for name, text in self.method_lines()),
            f"costs of a mean step on {self.batch} samples, {8 * self.itemsize}-bit numbers",
            *([f"of one process, which sends {self._sent()}"] if is_joined(self.program) else []),
            *shared_work(self.program, self.itemsize),
        ]

    def method_lines(self) -> list[tuple[str, str]]:
        """The method, or each one with its layers, and why they were chosen: a name and a text each."""
        chosen, used = self.program.methods, self.methods
        lines = [("method", f"{used[0]}: {METHODS[used[0]]}")]
        if len(used) > 1:
            by_layer = {x: self.method(x) for x in self.graph.trained}
            of = {m: [x for x, method in by_layer.items() if method == m] for m in used}
            lines = [("method", f"{m} of {listed(of[m], NAMED)}: {METHODS[m]}") for m in used]
        why = "auto" if self.settings.method == AUTO else "because"
        shared = shared_lines(self.graph, self.settings, chosen if self.settings.factored else ())
        return [*lines, *shared, *((why, reason) for reason in self.program.reasons)]

    @property
    def methods(self) -> list[str]:
        """The methods in use."""
        return list(dict.fromkeys(self.method(layer) for layer in self.graph.trained))

    def method(self, layer: str) -> str:
        """The curvature method of a layer, or the first-order one."""
        if layer in self.graph.first_order and self.settings.second_order:
            return UNCOVERED
        return self.program.methods.get(layer, str(self.settings.method))

    def layer_rows(self) -> list[Row]:
        """One row a layer, frozen ones too: its uses, at how many places in all, and what rule trains it."""
        graph = self.graph
        frozen = sum(p.numel() for p in self.traced.parameters.values()) - self.parameter_count
        layers = {**graph.trained, **graph.frozen}
        place = {node.name: i for i, node in enumerate(graph)}
        rows = [
            self._layer_row(layer)
            for layer in sorted(layers.values(), key=lambda x: place[x.node.name])
        ]
        return [
            ["layer", "weights", "uses", "places", "then", "method", "params"],
            *rows,
            ["trained", *[""] * 5, f"{self.parameter_count:,}"],
            *([["frozen", *[""] * 5, f"{frozen:,}"]] if frozen else []),
        ]

    def _layer_row(self, layer: Layer) -> Row:
        trained = layer.name in self.graph.trained
        method = self.method(layer.name)
        return [
            layer.name,
            self.layer_text(layer),
            str(len(layer.uses)),
            str(self.places(layer)),
            shortened(self.then(layer), SHOWN),
            f"{method} {RULES[method]}" if trained else "frozen",
            f"{self.parameters(layer):,}",
        ]

    def places(self, layer: Layer) -> int:
        """At how many places of a sample a weight is applied, by all its uses together."""
        found = 0
        for use in layer.uses:
            assert isinstance(use.op, LayerOp)
            found += use.op.places_in(use.size, [self.graph[name].size for name in use.inputs])
        return found

    def then(self, layer: Layer) -> str:
        """The pointwise functions of a layer's values."""
        after = [node for use in layer.uses for node in self.pointwise_after(use)]
        return brief_text(after) or "-"

    def cost_rows(self) -> list[Row]:
        """Factors, what is kept and the cost of a mean step, one row a trained layer; shared work, total."""
        layers = self.graph.trained
        shared = self.mean_cost("")
        everything = shared + total(self.mean_cost(layer) for layer in layers)
        return [
            ["layer", "Q", "Ḡ", "kept", "FLOPs", "traffic"],
            *(
                [
                    name,
                    *(self.factor_text(kind, name) for kind in "QG"),
                    self.kept_text([n for use in layer.uses for n in self.pointwise_after(use)]),
                    *in_units(self.mean_cost(name)),
                ]
                for name, layer in layers.items()
            ),
            ["(shared)", *[""] * 3, *in_units(shared)],
            ["total", *[""] * 3, *in_units(everything)],
        ]

    @staticmethod
    def layer_text(layer: Layer) -> str:
        """What a layer's weight does: ``784 → 100 + b``, or the length of a trainable vector."""
        if layer.vector:
            return f"vector of {layer.rows}"
        assert isinstance(layer.node.op, LayerOp)
        frozen = layer.bias is None and layer.node.op.bias is not None
        bias = " + b" if layer.homogeneous else " + frozen b" if frozen else ""
        return f"{layer.columns} → {layer.rows}{bias}"

    @staticmethod
    def parameters(layer: Layer) -> int:
        """How many numbers W̄ holds."""
        return math.prod(layer.shape)

    def factor_text(self, kind: str, layer: str) -> str:
        name = self.program.results.get(f"{kind}.{layer}")
        if name is None:
            return "-"
        spec = self.program[name].spec
        return f"{spec.size} {'scaled I' if spec.structure is SCALED else spec.structure}"

    def pointwise_after(self, node: Node) -> list[Node]:
        return [n for n in self.graph.consumers(node.name) if isinstance(n.op, Pointwise)]

    def kept_rows(self) -> list[Row]:
        """What each pointwise function keeps for the backward pass, why, and its bytes; no rows if none is.

        The last row compares with keeping every input and output of these functions.
        """
        reasons: dict[tuple[str, str], list[Node]] = {}
        for node in self.active_pointwise():
            reasons.setdefault((rule_of(node).keeps, rule_of(node).why), []).append(node)
        rows = [
            [
                keeps,
                brief_text(nodes),
                why,
                binary_size(self.bytes_of(*map(self.kept_values, nodes))),
            ]
            for (keeps, why), nodes in reasons.items()
        ]
        nodes = self.active_pointwise()
        kept = self.bytes_of(*map(self.kept_values, nodes))
        everything = self.bytes_of(*map(self.values_around, nodes))
        compared = f"of {binary_size(everything)} for all their inputs and outputs"
        heading = ["kept", "functions", "because", f"batch {self.batch}"]
        return [heading, *rows, ["total", "", compared, binary_size(kept)]] if rows else []

    def kept_text(self, nodes: Sequence[Node]) -> str:
        """The bytes that these pointwise nodes keep."""
        return binary_size(self.bytes_of(*map(self.kept_values, nodes))) if nodes else "-"

    def bytes_of(self, *names: Collection[str]) -> int:
        """Bytes of values of the program, each counted once."""
        distinct = {name for each in names for name in each}
        return sum(self.costs.elements(self.program[n].spec) for n in distinct) * self.itemsize

    def active_pointwise(self) -> list[Node]:
        active = Forward(ProgramBuilder(), self.graph, {}).active
        return [n for n in self.graph if isinstance(n.op, Pointwise) and n.name in active]

    def mean_cost(self, layer: str) -> Cost:
        """What a mean step costs for a layer, or with ``""`` for all of them together."""
        return self._mean_costs.get(layer, Cost())

    @cached_property
    def _mean_costs(self) -> dict[str, Cost]:
        sums: dict[str, tuple[float, float]] = {}
        for i in self.program:
            if i.phase:  # leaves have none
                flops, moved = sums.get(i.origin.layer, (0.0, 0.0))
                cost = self.costs.of(i) * self.costs.runs(i.phase)
                often = self.mean_runs.get(i.phase, 0)
                sums[i.origin.layer] = flops + cost.flops * often, moved + cost.bytes * often
        return {layer: Cost(round(f), round(m)) for layer, (f, m) in sums.items()}

    @cached_property
    def mean_runs(self) -> dict[str, float]:
        """How often a mean step runs each phase, by the timetable."""
        return mean_runs(self.settings, self.program.step)

    @cached_property
    def first_steps(self) -> dict[str, int]:
        """Phases that only the first steps run, and how many of these."""
        return first_steps(self.settings, self.program.step)

    def when(self, phase: str) -> str:
        """When a step runs a phase, in words."""
        record, rate = self.program.record(phase), self.mean_runs.get(phase, 0.0)
        if phase in self.first_steps:
            return f"the first {self.first_steps[phase]} steps"
        if record.when is where_noise_leads:
            return "for quadratic, where noise leads"
        if rate == 0:
            return "after a failed step" if record.stage is Stage.FAILURE else "on demand"
        period = round(1 / rate)
        regular = record.repeat is not Repeat.DAMPINGS and rate * period == 1
        often = f"every {period} steps" if regular else f"{rate:.3g} times a step"
        times = f", in {self.costs.runs(phase)} runs" if self.costs.runs(phase) > 1 else ""
        return ("every step" if rate == 1 else often) + times

    def _sent(self, runs: Mapping[str, float] | None = None) -> str:
        """What one of many processes sends in so many runs of phases, by default in a mean step."""
        found = [(self.costs.sent(name), often) for name, often in (runs or self.mean_runs).items()]
        size, many = (sum(each[k] * often for each, often in found) for k in (0, 1))
        return f"{binary_size(round(size))} in {many:.3g} messages" if many else "-"

    def phase_rows(self) -> list[Row]:
        """When each phase runs, its cost when it does, and how many launches that takes if this is known."""
        rows = [
            [name, self.when(name), *in_units(cost)] for name, cost in self.costs.by_phase().items()
        ]
        joined, order = is_joined(self.program), self.order
        if joined:
            rows = [[*row, self._sent({row[0]: 1.0})] for row in rows]
        if order is not None:
            rows = [[*row, str(len(order.phases[row[0]]))] for row in rows]
        more = [*["sent"] * joined, *["launches"] * (order is not None)]
        return [["phase", "when", "FLOPs", "traffic", *more], *rows]

    def memory_rows(self) -> list[Row]:
        """Bytes of parameters, of each kind of state, of work buffers, and in total.

        Work buffers are shared by values that never live together, so theirs is what a step holds at most.
        """
        kinds: dict[str, int] = {}
        for key, size in self.costs.state_bytes().items():
            kind = key.partition(".")[0]
            kinds[kind] = kinds.get(kind, 0) + size
        parameters = [
            self.costs.elements(leaf.spec) * self.itemsize
            for leaf in self.program.leaves("parameter")
        ]
        held = {
            "parameters": sum(parameters),
            **{STATES.get(k, f"state {k}"): size for k, size in kinds.items() if size >= 1024},
            f"work buffers at most, batch {self.batch}": self.costs.work_bytes(self.order),
        }
        sizes = [*held.items(), ("total", sum(held.values()))]
        return [["memory", ""], *([name, binary_size(size)] for name, size in sizes)]

    # --- one layer, one node --------------------------------------------------------------------------

    def kept(self, node: Node) -> str:
        """What a pointwise node keeps for the backward pass, and why."""
        rule = rule_of(node)
        return f"{', '.join(self.kept_values(node)) or 'nothing'} ({rule.keeps}); {rule.why}"

    def kept_values(self, node: Node) -> list[str]:
        """The values of the program that the slopes of a pointwise node are computed from."""
        assert isinstance(node.op, Pointwise)
        symbols = dict(zip(node.op.arguments, node.inputs, strict=True))
        return [self.program.nodes[symbols.get(symbol, node.name)] for symbol in rule_of(node).kept]

    def values_around(self, node: Node) -> list[str]:
        """The values of the program that a node reads and writes."""
        return [self.program.nodes[name] for name in (*node.inputs, node.name)]

    def last_layer_hessian(self) -> str:
        """The stored form of the mean output Hessian where it is the last layer's Ḡ, else nothing."""
        if not self.graph.layers:
            return ""
        last = list(self.graph.layers)[-1]
        mean = self.program.results.get(f"G.{last}")
        if mean is None or self.graph.output.inputs[0] != self.graph.layers[last].node.name:
            return ""
        return f"{self.program[mean].spec}, as the output factor of the last layer"


def in_units(cost: Cost) -> Row:
    """FLOPs and bytes for people."""
    return [engineering(cost.flops), binary_size(cost.bytes)]
