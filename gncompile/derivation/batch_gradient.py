"""What a batch gives at the parameters of a step: outputs, loss, vectors and gradients."""

from __future__ import annotations

from collections.abc import Mapping

from ..graph.model_graph import ModelGraph
from ..losses.vocabulary import Loss
from ..program import operations as ir
from ..program import specs
from ..program.builder import ProgramBuilder, Value
from .dropout import make_masks
from .forward import Forward
from .loss_rules import LossRules, loss_rules
from .propagation import pull_back, weight_gradients


class BatchGradient:
    """Forward pass, loss, vectors backwards and weight gradients; made in the phase ``gradient``."""

    def __init__(self, builder: ProgramBuilder, graph: ModelGraph, loss: Loss) -> None:
        self.builder, self.graph, self.loss = builder, graph, loss
        make_masks(builder, graph)
        with builder.phase("gradient"):
            with builder.origin(role="forward"):
                self.forward = Forward.emit(builder, graph)
            with builder.origin(role="loss"):
                self.rules: LossRules = loss_rules(builder, loss, self.forward.output)
                self.value = self.rules.value()
            with self.forward.work_at_output():
                seed = self.rules.gradient()
            self.vectors = pull_back(self.forward, seed)
            self.gradients = weight_gradients(self.forward, self.vectors)
            builder.results["loss"] = self.value.name
            builder.nodes = {node: value.name for node, value in self.forward.values.items()}

    def on_share(self, rows: specs.Dim) -> tuple[Forward, LossRules]:
        """The forward pass and the loss on a share of the batch, or on all of it."""
        forward = self.forward if rows == "N" else self.forward.share(rows)
        with forward.work_at_output():
            return forward, loss_rules(self.builder, self.loss, forward.output)

    def share(self, vectors: Mapping[str, Value], rows: specs.Dim) -> Mapping[str, Value]:
        """A share of the rows of vectors, or all."""
        if rows == "N":
            return vectors
        return {name: self.builder.emit(ir.Share(rows), v) for name, v in vectors.items()}

    def output_gradient(self, rows: specs.Dim) -> tuple[Forward, Value]:
        """The forward pass on a share of the batch, and the loss's gradient at the output there."""
        gradient = self.share({"": self.rules.gradient()}, rows)[""]
        return self.forward if rows == "N" else self.forward.share(rows), gradient

    def loss_of(self, rows: specs.Dim) -> Value:
        """The loss of a share of the batch."""
        output = self.share({"": self.forward.output}, rows)[""]
        return loss_rules(self.builder, self.loss, output).value()
