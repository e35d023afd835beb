"""What was compiled, and why it is right: a table of the layers, and the derivation in formulas.

:func:`summary` is the table to look at first: a wrong row shows at once what was misunderstood.
:func:`explain` writes the derivation of one layer, or of the whole step with the loss and the theorem on
piecewise-linear networks. Everything here is read off the compiled program, nothing is computed twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .builder import ProgramBuilder
from .costs import Cost, CostModel, attribute, columns_within, forward_values, total
from .errors import CompileError, message, nearest
from .formulas import Formulas
from .losses import Loss, SeparableLoss
from .model_graph import Affine, ModelGraph, Node, Pointwise, TracedModel
from .optimiser.settings import Settings
from .piecewise_linear import rule_of, theorem
from .propagation import Forward
from .step_program import StepProgram
from .tables import binary_size, count, engineering, indent, table
from .transfer import transfer, transfer_names

METHODS = {
    "kfra": "one matrix for the batch, averaged at every pointwise layer [BRB §3.3]",
    "kflr": "the columns of a root of the output Hessian, exact Ḡ [BRB §3.2]",
    "kfac": "gradients of targets sampled from the model [MG §3]",
    "kfac_rp": "random ±1 projections of a root of the output Hessian",
    "empirical": "the training gradients themselves",
    "adam": "no curvature",
    "sgd": "no curvature",
}


def summary(
    traced: TracedModel,
    loss: Loss,
    settings: Settings,
    program: StepProgram,
    *,
    batch: int = 1000,
    itemsize: int = 4,
) -> str:
    """An aligned table, one row a trainable layer, with totals, cost of the phases, and memory.

    FLOPs and bytes are those of a mean step on ``batch`` samples of ``itemsize``-byte numbers; what runs
    only every k steps counts 1/k.
    """
    return "\n\n".join(_Report(traced, loss, settings, program, batch, itemsize).summary())


def explain(
    traced: TracedModel,
    loss: Loss,
    settings: Settings,
    program: StepProgram,
    layer: str | None = None,
    *,
    batch: int = 1000,
    itemsize: int = 4,
    source: str | None = None,
) -> str:
    """The derivation of one layer, or of everything when ``layer`` is None, as readable text.

    ``source`` is the text of the emitted file, to quote and number its lines; it is written anew if not
    given. Raises :class:`~gncompile.errors.CompileError` for a layer the model does not have.
    """
    report = _Report(traced, loss, settings, program, batch, itemsize)
    if layer is None:
        return "\n\n".join(report.everything())
    if layer not in traced.graph.layers:
        known = list(traced.graph.layers)
        raise CompileError(
            message(
                f"the model has no trainable affine layer {layer!r}. {nearest(layer, known)}".rstrip(),
                instead=f"use one of {', '.join(known)}",
            )
        )
    if source is None:
        from .emit.torch_source import emit_torch

        source = emit_torch(program, f"A training step of {traced.name}.", traced.graph.to_text())
    return "\n\n".join([*report.layer(layer), *report.statements(layer, source)])


@dataclass(frozen=True)
class _Report:
    traced: TracedModel
    loss: Loss
    settings: Settings
    program: StepProgram
    batch: int
    itemsize: int

    @property
    def graph(self) -> ModelGraph:
        return self.traced.graph

    @cached_property
    def costs(self) -> CostModel:
        program, settings = self.program, self.settings
        columns = columns_within(program, self.batch, self.itemsize, settings.memory_budget)
        rows = settings.rows(self.batch)
        return CostModel(program, self.batch, self.itemsize, rows, columns)

    @cached_property
    def parts(self) -> dict[tuple[str, str], Cost]:
        return self.costs.by_part(self.graph)

    @cached_property
    def owners(self) -> dict[str, tuple[str, str]]:
        return attribute(self.program, self.graph)

    @cached_property
    def formulas(self) -> Formulas:
        return Formulas.of(self.program, self.graph)

    # --- the table ------------------------------------------------------------------------------------

    def summary(self) -> list[str]:
        layers, loss, settings = self.graph.layers, self.loss, self.settings
        parameters = sum(self._parameters(node) for node in layers.values())
        head = (
            f"{self.traced.name}: {count(len(layers), 'trainable layer')}, "
            f"{parameters:,} trained parameters\n"
            f"loss {loss.name}: {loss.scale}\n"
            f"method {settings.method}: {METHODS[settings.method]}\n"
            f"costs of a mean step on {self.batch} samples, {8 * self.itemsize}-bit numbers"
        )
        rows = [self._row(layer, node) for layer, node in layers.items()]
        shared = self._mean_cost("")
        everything = shared + total(self._mean_cost(layer) for layer in layers)
        rows.append(
            ["(loss, step size)", *[""] * 7, engineering(shared.flops), binary_size(shared.bytes)]
        )
        rows.append(["total", *[""] * 6, f"{parameters:,}", *_both(everything)])
        names = [
            "layer",
            "rule",
            "then",
            "method",
            "Q",
            "Ḡ",
            "kept",
            "parameters",
            "FLOPs",
            "traffic",
        ]
        return [
            head,
            table([names, *rows], right=(7, 8, 9)),
            *self._notes(),
            self._phases(),
            self._memory(),
        ]

    def _row(self, layer: str, node: Node) -> list[str]:
        source = self.graph[node.inputs[0]]
        assert isinstance(node.op, Affine)
        bias = "" if node.op.bias is None else " + b" if node.op.homogeneous else " + frozen b"
        return [
            layer,
            f"{source.size} → {node.size}{bias}",
            ", ".join(_function_text(n) for n in self._pointwise_after(node)) or "-",
            self.settings.method,
            *(self._factor_text(kind, layer) for kind in "QG"),
            ", ".join(dict.fromkeys(rule_of(n).keeps for n in self._pointwise_after(node))) or "-",
            f"{self._parameters(node):,}",
            *_both(self._mean_cost(layer)),
        ]

    def _parameters(self, node: Node) -> int:
        assert isinstance(node.op, Affine)
        return node.size * (self.graph[node.inputs[0]].size + int(node.op.homogeneous))

    def _factor_text(self, kind: str, layer: str) -> str:
        name = self.program.results.get(f"{kind}.{layer}")
        if name is None:
            return "-"
        spec = self.program[name].spec
        return f"{spec.size} {spec.structure.name.lower().replace('_', ' ')}"

    def _pointwise_after(self, node: Node) -> list[Node]:
        return [n for n in self.graph.consumers(node.name) if isinstance(n.op, Pointwise)]

    def _notes(self) -> list[str]:
        """Why each kind of value is kept, once."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for node in self._active_pointwise():
            key = rule_of(node).keeps, rule_of(node).why
            reasons.setdefault(key, []).append(_function_text(node))
        if not reasons:
            return []
        rows = [
            [keeps, ", ".join(dict.fromkeys(functions)), why]
            for (keeps, why), functions in reasons.items()
        ]
        return [table([["kept", "functions", "because"], *rows])]

    def _active_pointwise(self) -> list[Node]:
        active = Forward(ProgramBuilder(), self.graph, {}).active
        return [n for n in self.graph if isinstance(n.op, Pointwise) and n.name in active]

    def _mean_cost(self, layer: str) -> Cost:
        shares = [(cost, self._share(part)) for (x, part), cost in self.parts.items() if x == layer]
        return Cost(
            round(sum(cost.flops * share for cost, share in shares)),
            round(sum(cost.bytes * share for cost, share in shares)),
        )

    def _share(self, phase: str) -> float:
        """In which share of the steps a phase runs."""
        every = {
            "invert": self.settings.refresh_every,
            **dict.fromkeys(("predict", "evaluate", "adapt"), self.settings.damping_period),
        }
        if phase in ("restore", "reject"):
            return 0.0
        if not self.settings.second_order and phase in every:
            return 0.0
        return 1 / every.get(phase, 1)

    def _when(self, phase: str) -> str:
        share = self._share(phase)
        if share == 0:
            return "on demand" if phase in ("predict", "evaluate") else "after a failed step"
        times = f", in {self.costs.runs(phase)} runs" if self.costs.runs(phase) > 1 else ""
        return ("every step" if share == 1 else f"every {round(1 / share)} steps") + times

    def _phases(self) -> str:
        rows = [
            [name, self._when(name), *_both(cost)] for name, cost in self.costs.by_phase().items()
        ]
        return table([["phase", "when", "FLOPs", "traffic"], *rows], right=(2, 3))

    def _memory(self) -> str:
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
            **{f"state {kind}": size for kind, size in kinds.items() if size >= 1024},
            f"work buffers, batch {self.batch}": sum(self.costs.buffer_bytes().values()),
        }
        rows = [
            [name, binary_size(size)]
            for name, size in [*held.items(), ("total", sum(held.values()))]
        ]
        return table([["memory", ""], *rows], right=(1,))

    # --- the derivation -------------------------------------------------------------------------------

    def everything(self) -> list[str]:
        name = self.settings.method
        conventions = (
            "N samples are rows; E[·] is the mean over them. W[l] is [out, in], b[l] is [out], "
            "[x, 1] appends a one.\nThe Gauss-Newton block of [W, b], flattened row by row, is G ⊗ Q. "
            "⊙ is elementwise, ← overwrites.\nNames are those of the emitted source."
        )
        text = [f"# Derivation of {self.traced.name}", conventions]
        text += [
            "## Network",
            self.graph.to_text(),
            f"## Loss: {self.loss.name}",
            self._loss_text(),
        ]
        text += [f"## Curvature: {name}", METHODS[name]]
        for layer in self.graph.layers:
            text += self.layer(layer, heading="##")
        text += ["## What the layers share", *self._section("", skip=("loss", "predict"))]
        return [*text, "## Piecewise-linear networks", theorem(self.graph, self.loss)]

    def _loss_text(self) -> str:
        loss = self.loss
        lines = [f"scale     {loss.scale}"]
        if isinstance(loss, SeparableLoss):
            lines = [
                f"value     E_n = c Σ_j e(z_j, y_j),  e = {loss.expression}",
                f"gradient  c e',  e' = {loss.slope}",
                f"Hessian   c diag(e''),  e'' = {loss.curvature}",
                f"root      √c diag({loss.root})",
                f"convex    {loss.convexity.verdict}: {loss.convexity.reason}",
                *lines,
            ]
        else:
            lines = [f"formulas  {loss.describe()}", "root      √(c m) (diag √p - p √pᵀ)", *lines]
        mean = self.program.results.get(f"G.{self._last_layer()}")
        if (
            mean is not None
            and self.graph[self.graph.output.inputs[0]] in self.graph.layers.values()
        ):
            lines.append(
                f"E[𝓗]      {self.program[mean].spec}, as the output factor of the last layer"
            )
        return "\n".join([*lines, "", *self._lines("", "loss")])

    def _last_layer(self) -> str:
        return list(self.graph.layers)[-1]

    def layer(self, layer: str, heading: str = "#") -> list[str]:
        node = self.graph.layers[layer]
        row = self._row(layer, node)
        facts = [
            f"in your model  {node.origin}",
            f"computes       {row[1]}, {row[7]} parameters",
            f"then           {row[2]}",
            f"factors        Q {row[4]}, Ḡ {row[5]}, by {self.settings.method}",
            f"mean cost      {row[8]}FLOP, {row[9]} of memory traffic a step of {self.batch} samples",
        ]
        sections = self._section(
            layer, skip=("predict", "update", "restore", "reject", "columns_begin")
        )
        return [f"{heading} Layer {layer}", "\n".join(facts), *self._kept(node), *sections]

    def _kept(self, node: Node) -> list[str]:
        lines = []
        values = forward_values(self.program, self.graph)
        for after in self._pointwise_after(node):
            assert isinstance(after.op, Pointwise)
            rule = rule_of(after)
            symbols = dict(zip(after.op.arguments, after.inputs, strict=True))
            names = [values.get(symbols.get(s, after.name), str(s)) for s in rule.kept]
            kept = ", ".join(names) or "nothing"
            lines.append(f"{_function_text(after)}: {kept} ({rule.keeps}); {rule.why}")
        return ["Kept for the backward pass\n" + indent(lines)] if lines else []

    def _section(self, layer: str, skip: Sequence[str]) -> list[str]:
        """The formulas owned by a layer, one paragraph for each part."""
        titles = {
            "forward": "Forward",
            "gradient": "Slopes and gradient",
            "input factor": "Input factor Q",
            "output factor": "Output factor Ḡ: the recursion's step",
            "average": "Running averages",
            "invert": "Damped inverses",
            "direction": "Direction",
            "quadratic": "R-operator: the output's change along Δ (r1) and the last step δ (r2)",
        }
        parts = dict.fromkeys(part for owner, part in self.owners.values() if owner == layer)
        found = []
        for part in [*(p for p in titles if p in parts), *(p for p in parts if p not in titles)]:
            lines = [] if part in skip else self._lines(layer, part)
            if lines:
                found.append(f"{titles.get(part, part.capitalize())}\n{indent(lines)}")
        return found

    def _lines(self, layer: str, part: str) -> list[str]:
        return self.formulas.lines(
            {n for n, owner in self.owners.items() if owner == (layer, part)}
        )

    def statements(self, layer: str, source: str) -> list[str]:
        """The lines of the emitted file that compute this layer's values, by phase, numbered."""
        homes = {
            (i.phase, i.into or i.name)
            for i in self.program
            if self.owners.get(i.name, ("", ""))[0] == layer
        }
        phase, shown = "", ""
        pending: list[str] = []
        lines: list[str] = []
        for number, text in enumerate(source.splitlines(), start=1):
            if found := re.match(r"    def (\w+)\(", text):
                phase, pending = found[1], []
            elif phase and text.startswith("        "):
                pending.append(f"{number:>5}  {text.strip()}")
                target = _written(text)
                if (phase, target) in homes:
                    lines += ([] if shown == phase else [f"       def {phase}:"]) + pending
                    shown = phase
                if target and not target.startswith("scratch"):
                    pending = []
        return ["Emitted statements\n" + "\n".join(lines)] if lines else []


# --- text ---------------------------------------------------------------------------------------------


def _function_text(node: Node) -> str:
    """``tanh`` where the expression is a registered transfer function, else the expression itself."""
    assert isinstance(node.op, Pointwise)
    expression, arguments = node.op.expression, node.op.arguments
    for name in transfer_names() if len(arguments) == 1 else []:
        if transfer(name)(arguments[0]) == expression:
            return name
    return str(expression)


def _written(line: str) -> str:
    """The tensor a statement of the emitted source writes."""
    found = re.search(r"out=(\w+)", line) or re.match(r"\s*memory\.random\(\S+ (\w+)\)", line)
    found = found or re.match(r"\s*(\w+)\b[^=]*\.\w+_\(", line)
    return found[1] if found else ""


def _both(cost: Cost) -> list[str]:
    return [engineering(cost.flops), binary_size(cost.bytes)]
