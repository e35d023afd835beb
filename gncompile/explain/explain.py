"""What was compiled, and why it is right: a table of the layers, and the derivation in formulas.

:func:`summary` is the table to look at first: a wrong row shows at once what was misunderstood.
:func:`explain` writes the derivation of one layer, or of the whole step with the loss and the theorem on
piecewise-linear networks. Both are text; :mod:`gncompile.explain.report` shows the same facts as pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..base.settings import Settings
from ..base.tables import indent, table, wrapped
from ..derivation.piecewise_linear import theorem
from ..emit.step_source import StepSource, emit_step
from ..errors import CompileError, nearest
from ..graph.model_graph import ModelGraph, TracedModel
from ..graph.nodes import Node
from ..losses.vocabulary import CoupledLoss, Loss, SeparableLoss, SumLoss
from ..program.operations import Leaf
from ..program.schedule import Schedule
from ..program.step_program import StepProgram
from .function_names import function_text
from .readback import PARTS, REPEATS, Readback, in_units


def summary(
    traced: TracedModel,
    loss: Loss,
    settings: Settings,
    program: StepProgram,
    *,
    batch: int = 1000,
    itemsize: int = 4,
    order: Schedule | None = None,
    width: int | None = None,
) -> str:
    """Aligned tables: what trains each layer, its factors and costs, the phases, and memory.

    FLOPs and bytes are those of a mean step on ``batch`` samples of ``itemsize``-byte numbers; what runs
    only every k steps counts 1/k. ``order`` is the schedule of launches, if the backend has one. Lines have
    ``width`` characters, by default those of the terminal.
    """
    read = Readback(traced, loss, settings, program, batch, itemsize, order)
    kept = read.kept_rows()
    tables = [
        table(read.layer_rows(), right=(2, 3, 6), width=width),
        table(read.cost_rows(), right=(4, 5), width=width),
        *([table(kept, right=(3,), width=width)] if kept else []),
        table(read.phase_rows(), right=(2, 3, 4), width=width),
        table(read.memory_rows(), right=(1,), width=width),
    ]
    head = [line for sentence in read.head() for line in wrapped(sentence, width, further="  ")]
    return "\n\n".join(["\n".join(head), *tables])


def explain(
    traced: TracedModel,
    loss: Loss,
    settings: Settings,
    program: StepProgram,
    layer: str | None = None,
    *,
    batch: int = 1000,
    itemsize: int = 4,
    source: StepSource | None = None,
) -> str:
    """The derivation of one layer, or of everything when ``layer`` is None, as readable text.

    ``source`` is the emitted step, to quote and number its lines; it is written anew if not
    given. Raises :class:`~gncompile.errors.CompileError` for a layer the model does not have.
    """
    report = _Derivation(Readback(traced, loss, settings, program, batch, itemsize))
    if layer is None:
        return "\n\n".join(report.everything())
    if layer not in traced.graph.trained:
        known = list(traced.graph.trained)
        raise CompileError(
            f"the model has no trainable affine layer {layer!r}. {nearest(layer, known)}".rstrip(),
            instead=f"use one of {', '.join(known)}",
        )
    if source is None:
        source = emit_step(program, f"A training step of {traced.name}.", traced.graph.to_text())
    return "\n\n".join([*report.layer(layer), *report.statements(layer, source)])


@dataclass(frozen=True)
class _Derivation:
    """The derivation as paragraphs of text."""

    read: Readback

    @property
    def graph(self) -> ModelGraph:
        return self.read.graph

    def everything(self) -> list[str]:
        conventions = (
            "N samples are rows; E[·] is the mean over them. Factors are computed on the first\n"
            "F of them, the quadratic model's curvature on the first Q. W[l] is [out, in],\n"
            "b[l] is [out], [x, 1] appends a one. The Gauss-Newton block of [W, b], flattened\n"
            "row by row, is G ⊗ Q. ⊙ is elementwise, ← overwrites. Names are those of the\n"
            "emitted source."
        )
        text = [f"# Derivation of {self.read.traced.name}", conventions]
        text += [
            "## Network",
            self.graph.to_text(),
            f"## Loss: {self.read.loss.name}",
            self._loss_text(),
        ]
        text += ["## Curvature", "\n".join(f"{x} {line}" for x, line in self.read.method_lines())]
        for layer in self.graph.trained:
            text += self.layer(layer, heading="##")
        text += ["## What the layers share", *self._section("", skip=("loss", *REPEATS))]
        return [*text, "## Piecewise-linear networks", theorem(self.graph, self.read.loss)]

    def _loss_text(self) -> str:
        loss = self.read.loss
        lines = _loss_lines(loss)
        mean = self.read.last_layer_hessian()
        return "\n".join(
            [*lines, *([f"E[𝓗]      {mean}"] if mean else []), "", *self._lines("", "loss")]
        )

    def layer(self, layer: str, heading: str = "#") -> list[str]:
        record = self.graph.trained[layer]
        node, read = record.node, self.read
        flops, traffic = in_units(read.mean_cost(layer))
        facts = [
            f"in your model  {node.origin}",
            f"computes       {read.layer_text(record)}, {read.parameters(record):,} parameters",
            f"then           {read.then(record)}",
            f"factors        Q {read.factor_text('Q', layer)}, Ḡ {read.factor_text('G', layer)}, "
            f"by {read.method(layer)}",
            f"mean cost      {flops}FLOP, {traffic} of memory traffic a step of {read.batch} samples",
        ]
        skip = (*REPEATS, "average_parameters", "update", "restore", "reject", "columns_begin")
        sections = self._section(layer, skip)
        return [f"{heading} Layer {layer}", "\n".join(facts), *self._kept(node), *sections]

    def _kept(self, node: Node) -> list[str]:
        followers = self.read.pointwise_after(node)
        lines = [f"{function_text(after)}: {self.read.kept(after)}" for after in followers]
        return ["Kept for the backward pass\n" + indent(lines)] if lines else []

    def _section(self, layer: str, skip: Sequence[str]) -> list[str]:
        """The formulas owned by a layer, one paragraph for each part."""
        parts = self._owned.get(layer, {})
        found = []
        for part in [*(p for p in PARTS if p in parts), *(p for p in parts if p not in PARTS)]:
            lines = [] if part in skip else self._lines(layer, part)
            if lines:
                found.append(f"{PARTS.get(part, part.capitalize())}\n{indent(lines)}")
        return found

    def _lines(self, layer: str, part: str) -> list[str]:
        return self.read.formulas.lines(self._owned.get(layer, {}).get(part, set()))

    @cached_property
    def _owned(self) -> dict[str, dict[str, set[str]]]:
        """The values of every layer, by part."""
        owned: dict[str, dict[str, set[str]]] = {}
        for i in self.read.program:
            if not isinstance(i.op, Leaf):
                owned.setdefault(i.origin.layer, {}).setdefault(i.origin.role, set()).add(i.name)
        return owned

    def statements(self, layer: str, source: StepSource) -> list[str]:
        """The lines of the emitted file that compute this layer's values, by phase, numbered."""
        names = set().union(*self._owned.get(layer, {}).values())
        lines: list[str] = []
        phase = ""
        for statement in source.of(names):
            if statement.phase != phase:
                lines.append(f"       def {statement.phase}:")
            phase = statement.phase
            lines.append(f"{statement.number:>5}  {statement.text}")
        return ["Emitted statements\n" + "\n".join(lines)] if lines else []


def _loss_lines(loss: Loss) -> list[str]:
    """Value, gradient, Hessian, root and convexity of a loss; of a sum, those of every term."""
    if isinstance(loss, SumLoss):
        terms = (["", f"Of the output {t.key}", *_loss_lines(t.loss)] for t in loss.terms)
        return ["value     E_n = Σ_i E_n,i(z_i, y_i)", *(line for lines in terms for line in lines)]
    lines = [f"scale     {loss.scale}"]
    lines += ["          c is times the weights of the batch"] if loss.weighted else []
    if isinstance(loss, SeparableLoss):
        return [
            f"value     E_n = c Σ_j e(z_j, y_j),  e = {loss.expression}",
            f"gradient  c e',  e' = {loss.slope}",
            f"Hessian   c diag(e''),  e'' = {loss.curvature}",
            f"root      √c diag({loss.root})",
            f"convex    {loss.convexity.verdict}: {loss.convexity.reason}",
            *lines,
        ]
    if isinstance(loss, CoupledLoss):
        value = f"value     E_n = c e(z, y),  e = {loss.expression}"
        return [value, *_coupled_lines(loss), *lines]
    return [f"formulas  {loss.describe()}", "root      √(c m) (diag √p - p √pᵀ)", *lines]


def _coupled_lines(loss: CoupledLoss) -> list[str]:
    """Gradient, Hessian entry by entry, and the verdict on convexity."""
    slopes = zip(loss.z, loss.gradient, strict=True)
    entries = loss.hessian.items()
    root = "C Cᵀ = 𝓗, from the eigenvalues of each sample's 𝓗"
    if loss.negative_curvature == "clip":
        root += ", the negative ones set to zero"
    return [
        *(f"gradient  c ∂e/∂{z},  ∂e/∂{z} = {slope}" for z, slope in slopes),
        *(f"Hessian   ∂²e/∂{loss.z[i]}∂{loss.z[j]} = {entry}" for (i, j), entry in entries),
        f"root      {root}",
        f"convex    {loss.convexity.verdict}: {loss.convexity.reason}",
    ]
