"""A copy of a trained model, and its outputs with their Jacobians: all that a posterior asks of a network."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ..base.options import by_pattern
from ..errors import CompileError, LossError
from ..graph.dropout import without_dropout
from ..graph.layers import Layer, LayerOp
from ..graph.model_graph import ModelGraph, TracedModel
from ..graph.trained_layers import only_trained
from ..losses.loss_scale import PER_SAMPLE
from ..losses.vocabulary import Loss, LossSpec, SumLoss
from ..pipeline import jacobian_program
from ..program.costs import column_bytes
from ..program.step_program import StepProgram
from ..runtime.executable import Executable
from ..training.batches import BatchReader
from ..training.factors import ParameterPlaces
from .api import understand

LAST_LAYER = "last_layer"
Rows = Tensor | tuple[Tensor, Tensor]
"""``∂z_k/∂W̄`` of n samples: ``[K, n, out, in+1]``; or c ``[K, n, out]`` and x̄ ``[n, in+1]`` of ``c x̄ᵀ``."""


@dataclass(frozen=True, eq=False)
class Linearised:
    """``z(x, θ) ≈ z(x, θ*) + J (θ − θ*)``; the loss is the negative log-likelihood of a sample."""

    model: nn.Module
    traced: TracedModel
    loss: Loss
    reader: BatchReader
    memory_budget: int = 1 << 30

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: LossSpec,
        examples: Any,
        subset: str | Sequence[str] | None = None,
        memory_budget: int = 1 << 30,
    ) -> Linearised:
        """Of a copy of the model; ``subset`` are the layers whose parameters count as θ."""
        model = copy.deepcopy(model)
        traced, declared, reader = understand(model, loss, examples)
        if isinstance(declared, SumLoss):
            raise LossError(
                "the losses of several outputs make no one likelihood",
                where="the loss",
                instead="return one output, with one loss",
            )
        # A mean over outputs or samples is a convenience of training, the likelihood is a sum.
        declared = replace(declared, scale=PER_SAMPLE)
        graph = without_dropout(traced.graph)
        graph = only_trained(graph, _chosen(graph, subset))
        reader = replace(reader, graph=graph, loss=declared)
        return cls(model, traced.with_graph(graph), declared, reader, memory_budget)

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers whose parameters are θ, by name."""
        return self.traced.graph.layers

    @cached_property
    def places(self) -> dict[str, ParameterPlaces]:
        """Where the parameters of each layer stand in its W̄."""
        parameters = self.traced.parameters
        return {name: ParameterPlaces.of(layer, parameters) for name, layer in self.layers.items()}

    @cached_property
    def mode(self) -> dict[str, Tensor]:
        """θ* as W̄ by layer, in float64."""
        parameters = {name: p.detach().double() for name, p in self.traced.parameters.items()}
        return {name: layer.joined(parameters) for name, layer in self.layers.items()}

    def outputs(self, x: Tensor | tuple[Tensor, ...]) -> Iterator[tuple[Tensor, dict[str, Rows]]]:
        """Outputs ``z: [n, K]``, and by layer the rows ``∂z_k/∂W̄``, a few samples at a time.

        As many as fit into ``memory_budget``, and at least one. The tensors are overwritten by the next.
        """
        inputs, executable = self.reader.inputs(x), self._executable
        count = max(1, self.memory_budget // self._sample_bytes)
        for first in range(0, len(inputs[0]), count):
            executable.load(tuple(each[first : first + count] for each in inputs))
            executable.run(*executable.program.phases)
            rows = {name: self._rows(name, layer) for name, layer in self.layers.items()}
            yield executable.result("output"), rows

    def _rows(self, name: str, layer: Layer) -> Rows:
        executable = self._executable
        if f"rows.{name}" in executable.program.results:
            return executable.result(f"rows.{name}").unflatten(-1, layer.shape)
        left, right = (executable.result(f"{side}.{name}") for side in ("left", "right"))
        right = functional.pad(right[:, 0], (0, int(layer.homogeneous)), value=1.0)
        return left[:, :, 0], right

    @cached_property
    def _executable(self) -> Executable:
        # The rows of all outputs are wanted together: one chunk of columns, however large one sample's is.
        budget = max(self.memory_budget, self._sample_bytes)
        return Executable(
            self._program, self.traced, self.loss,
            dtype=self.reader.dtype, device=self.reader.device, memory_budget=budget,
        )  # fmt: skip

    @cached_property
    def _sample_bytes(self) -> int:
        outputs = self.traced.graph.output.size
        return column_bytes(self._program, 1, self.reader.dtype.itemsize, outputs)

    @cached_property
    def _program(self) -> StepProgram:
        return jacobian_program(self.traced.graph)


def _chosen(graph: ModelGraph, subset: str | Sequence[str] | None) -> list[str]:
    """The names of the layers of a subset."""
    if subset is None:
        if graph.first_order:
            raise CompileError(
                f"weights are computed of {', '.join(graph.first_order)}, which have no factors",
                instead="give the layers that are uncertain: subset=[...]; these have factors: "
                f"{', '.join(graph.layers) or 'none'}",
            )
        return list(graph.layers)
    if subset == LAST_LAYER:
        uses = (node.op.layer for node in reversed(list(graph)) if isinstance(node.op, LayerOp))
        last = [name for name in uses if name in graph.layers and not graph.layers[name].vector]
        if not last:
            raise CompileError("no layer with a weight is trained", instead="give subset=[...]")
        return last[:1]
    if isinstance(subset, str) or not subset or not all(isinstance(each, str) for each in subset):
        raise CompileError(
            f"subset is {subset!r}",
            instead=f"give {LAST_LAYER!r}, or a list of layers: {', '.join(graph.layers)}",
        )
    return list(by_pattern("subset", dict.fromkeys(subset, True), list(graph.layers)))
