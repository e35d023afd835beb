"""The curvature factors of a traced model on batches of data."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..base.settings import Settings
from ..errors import BatchError, CompileError, LossError
from ..graph.dropout import without_dropout
from ..graph.model_graph import TracedModel
from ..losses.rows import as_parts
from ..losses.vocabulary import Loss, SumLoss
from ..pipeline import factor_program
from ..program.costs import column_bytes
from ..runtime.executable import Executable
from ..runtime.memory import dense
from ..training.batches import BatchReader, Target, input_tensors
from ..training.factors import KroneckerFactors, ParameterPlaces
from ..training.loaders import PairOf, data_set


@dataclass(frozen=True)
class Total:
    """Of all batches that were measured: the samples, and the loss summed over them."""

    samples: int
    loss: float


class Measurement:
    """Measures factors by one method; no dropout, whatever the model's mode."""

    def __init__(
        self,
        traced: TracedModel,
        loss: Loss,
        reader: BatchReader,
        method: str,
        settings: Settings,
        *,
        backend: str = "torch",
        seed: int = 0,
    ) -> None:
        self.traced = traced.with_graph(without_dropout(traced.graph))
        self.loss, self.reader, self.budget = loss, reader, settings.memory_budget
        program = factor_program(self.traced.graph, loss, method, settings)
        self.executable = Executable(
            program, self.traced, loss,
            backend=backend, dtype=reader.dtype, device=reader.device, seed=seed,
            memory_budget=self.budget,
        )  # fmt: skip

    def of(self, batches: Iterable[object]) -> tuple[dict[str, KroneckerFactors], Total]:
        """Factors by layer, means over the samples of all batches."""
        found: dict[str, KroneckerFactors] = {}
        pair, samples, loss = PairOf(self.reader), 0, 0.0
        for number, batch in enumerate(batches):
            if number == 1:
                self._require_mean()
            factors, mean = self._of_batch(*pair(batch))
            found = {
                layer: found[layer] + each if found else each for layer, each in factors.items()
            }
            count = next(iter(factors.values())).samples or 0
            samples, loss = samples + count, loss + mean * count
        return found, Total(samples, loss)

    def _require_mean(self) -> None:
        """Batches add up to a mean over all samples only if the loss is one."""
        terms = (
            [term.loss for term in self.loss.terms]
            if isinstance(self.loss, SumLoss)
            else [self.loss]
        )
        for term in terms:
            if term.scale.over not in ("samples", "elements"):
                raise LossError(
                    f"the loss {term.name!r} divides by what only the whole data tell: {term.scale}",
                    where="the data, which come in several batches",
                    instead="use a loss that is a mean over samples, or pass all data as one batch",
                )

    def _of_batch(
        self, x: Tensor | tuple[Tensor, ...], y: Target
    ) -> tuple[dict[str, KroneckerFactors], float]:
        """The factors of one batch, and the mean of its loss."""
        inputs, target = self.reader.pair(x, y)
        self.reader.require_finite(inputs, target)
        executable, graph = self.executable, self.traced.graph
        batch, target = target.shape[0], as_parts(self.loss, graph.output.size, target)
        rows = self._rows_within(batch)
        sums: dict[str, Tensor] = {}
        loss = 0.0
        for start in range(0, batch, rows):
            part = slice(start, start + rows)
            executable.load(tuple(x[part] for x in inputs), target[part], whole=batch)
            executable.run(*executable.program.phases)
            share = target[part].shape[0] / batch
            loss += float(executable.result("loss")) * share
            for role, name in executable.program.results.items():
                if role[:2] in ("Q.", "G."):
                    value = self._dense(name) * share
                    sums[role] = sums[role] + value if role in sums else value
        factors = {
            layer: KroneckerFactors(
                layer, sums[f"Q.{layer}"], sums[f"G.{layer}"], batch,
                ParameterPlaces.of(record, self.traced.parameters),
            )
            for layer, record in graph.layers.items()
            if f"G.{layer}" in sums
        }  # fmt: skip
        for layer, found in factors.items():
            if not all(bool(each.isfinite().all()) for each in (found.input, found.output)):
                raise BatchError(
                    f"the curvature factors of layer {layer!r} are not finite on a batch of finite values",
                    instead="check the scale of the inputs, whose squares may overflow, and the parameters",
                )
        return factors, loss

    def _rows_within(self, batch: int) -> int:
        """Samples that may go through together when even one column of the batch exceeds the budget."""
        rows = max(1, min(batch, self.budget // self._row_bytes)) if self._row_bytes else batch
        if rows < batch and "pair" in self.executable.program.phases:  # whose result is no mean
            raise CompileError(
                f"a column of {batch} samples does not fit into memory_budget, and Q and Ḡ of a layer "
                "depend on each other",
                instead='use a smaller batch, a greater memory_budget, or method="kfra"',
            )
        return rows

    @cached_property
    def _row_bytes(self) -> int:
        return column_bytes(self.executable.program, 1, self.reader.dtype.itemsize)

    def _dense(self, name: str) -> Tensor:
        """A factor in full, whatever its structure."""
        value = dense(self.executable.step.value(name), self.executable.program[name].spec)
        return value.clone(memory_format=torch.contiguous_format)


def batches_of(x: Any, y: Target) -> Iterable[object]:
    """The batch ``(x, y)`` in a list, or without ``y`` the batches that ``x`` gives."""
    return data_set(x, "data") if y is None else [(x, y)]


def example_of(model: nn.Module, batches: Iterable[object]) -> tuple[Tensor, ...]:
    """The inputs of the first batch, before anything is known of the model but its ``forward``."""
    batch: Any = next(iter(batches), None)
    if batch is None:
        raise BatchError("the data has no batches", instead="give at least one batch (x, y)")
    if isinstance(batch, Mapping):
        named = [n for n in inspect.signature(model.forward).parameters if n in batch]
        # A container of modules has other names inside; whether they fit is checked when they are known.
        return input_tensors(tuple(batch[n] for n in named or list(batch)[:1]))
    if isinstance(batch, tuple | list) and batch:
        several = len(batch) > 2 and all(isinstance(each, Tensor) for each in batch)
        batch = tuple(batch[:-1]) if several else batch[0]
    return input_tensors(batch)
