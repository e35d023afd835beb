"""What a trainer can be asked besides a step: gradients, losses, predictions, factors, quadratic models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ..data.data_sets import Batches
from ..errors import CompileError, DataError, GncompileError, require_whole
from ..graph.dropout import without_dropout
from ..graph.embedding import is_whole
from ..graph.model_graph import TracedModel
from ..pipeline import input_gradient_program, quadratic_program, tangent_program
from ..program.step_program import StepProgram
from ..runtime.executable import Executable
from ..runtime.memory import dense
from .batches import Returned, Target, as_returned, first_tensor, input_tensors, joined_targets
from .compiled import Compiled
from .evaluation import Evaluation, parts
from .factors import KroneckerFactors, ParameterPlaces
from .loaders import Pair, PairOf, data_set, gives_batches
from .reported import Reported


class Questions:
    """Answers that change nothing, about a model that is known to be the compiled one.

    All are without dropout, whatever mode the model is in.
    """

    def __init__(self, compiled: Compiled, reported: Reported) -> None:
        self._compiled, self._reported = compiled, reported
        self._executable, self._settings = compiled.executable, compiled.settings
        self.evaluation = Evaluation(compiled, self.parameters)
        self._backwards: tuple[TracedModel, Executable] | None = None

    def parameters(self, averaged: bool | None = True) -> AbstractContextManager[None]:
        """See :meth:`Trainer.averaged_parameters`."""
        return self._reported.shown(averaged)

    def check_batch(self, x: Tensor | tuple[Tensor, ...], y: Target) -> None:
        """See :meth:`Trainer.check_batch`."""
        device = first_tensor(y).device
        valueless = device.type == "meta"
        reader = (
            self._compiled.reader if valueless else replace(self._compiled.reader, device=device)
        )
        inputs, target = reader.pair(x, y)
        if device.type == "cpu":
            reader.require_finite(inputs, target)

    def gradients(self, x: Tensor | tuple[Tensor, ...], y: Target) -> dict[str, Tensor]:
        """See :meth:`Trainer.gradients`."""
        self._load(x, y)
        self._run("gradient")
        return {name: value.clone() for name, value in self._compiled.gradient_views().items()}

    def input_gradient(
        self, x: Tensor | tuple[Tensor, ...], y: Target
    ) -> Tensor | tuple[Tensor | None, ...]:
        """See :meth:`Trainer.input_gradient`."""
        traced = self._compiled.traced
        if traced.trunk:
            raise CompileError(
                "the model has a frozen part that runs as it is, and no gradient passes through it",
                where=f"{traced.name}, before its first trained layer",
                instead="compile what follows that part, and call it yourself: its output is the input",
            )
        if self._backwards is None or self._backwards[0] is not traced:
            graph = without_dropout(traced.graph)
            program = input_gradient_program(graph, self._compiled.loss)
            self._backwards = traced, self._beside(program)
        executable = self._backwards[1]
        inputs, target = self._compiled.reader.pair(x, y)
        executable.load(inputs, target)
        executable.run("gradient")
        found = [
            None if is_whole(node.op) else torch.zeros_like(flat)
            for node, flat in zip(traced.inputs, inputs, strict=True)
        ]
        for role in executable.program.results:
            kind, _, position = role.partition(".")
            if kind == "input":
                found[int(position)] = executable.result(role) / len(target)
        given = input_tensors(x)
        shaped = tuple(
            None if g is None else g.reshape(each.shape)
            for g, each in zip(found, given, strict=True)
        )
        return shaped if isinstance(x, tuple | list) else cast(Tensor, shaped[0])

    def loss(self, x: Tensor | tuple[Tensor, ...], y: Target) -> Tensor:
        """See :meth:`Trainer.loss`."""
        self._load(x, y)
        self._run("predict", "evaluate")
        return self._executable.result("evaluated_loss").clone()

    def predict(self, x: object, averaged: bool | None = None) -> Returned:
        """See :meth:`Trainer.predict`."""
        return (
            self._predicted_of_all(x, averaged)
            if gives_batches(x)
            else self._predicted(x, averaged)
        )

    def _predicted_of_all(self, loader: Iterable[object], averaged: bool | None) -> Returned:
        """Predictions of all batches, in their order."""
        inputs = PairOf(self._compiled.reader).inputs
        batches = [loader.x] if isinstance(loader, Batches) else map(inputs, loader)
        found = [
            self._predicted(tuple(each[rows] for each in x), averaged)
            for x in map(input_tensors, batches)
            for rows in parts(len(x[0]))
        ]
        if not found:
            raise DataError("the data has no batches", where="predict")
        return joined_targets(found)

    def _predicted(self, x: Any, averaged: bool | None) -> Returned:
        inputs = self._compiled.reader.inputs(x)
        with self.parameters(averaged):
            self._executable.load(inputs)
            self._run("predict")
            output = self._executable.result("output")
            return as_returned(self._compiled.traced.graph.output, output.clone())

    def evaluate(
        self,
        x: object,
        y: Target = None,
        batch_size: int = 1000,
        averaged: bool | None = None,
    ) -> float:
        """See :meth:`Trainer.evaluate`."""
        require_whole("batch_size", batch_size)
        pair, data = PairOf(self._compiled.reader), data_set(x, "data") if y is None else None

        def pairs() -> Iterable[Pair]:
            return [(x, y)] if data is None else map(pair, data)  # type: ignore[list-item]

        return self.evaluation.loss(pairs(), self.evaluation.whole(pairs()), batch_size, averaged)

    def factors(self) -> dict[str, KroneckerFactors]:
        """See :meth:`Trainer.factors`."""
        states, program = self._executable.memory.states, self._executable.program
        if program.kept:
            raise GncompileError(
                "each layer's averages of factors are on one of several processes alone: factors='sharded'",
                where="Trainer.factors",
                instead="save a checkpoint on all processes, and ask Trainer.resume(path, model, "
                "process_group=False); or use gncompile.curvature, for factors of a batch",
            )
        traced, found = self._compiled.traced, {}
        for layer, record in traced.graph.layers.items():
            pair = [f"Q.{layer}", f"G.{layer}"]
            if all(key in states for key in pair):
                q, g = (dense(states[key], program.states[key].spec).clone() for key in pair)
                places = ParameterPlaces.of(record, traced.parameters)
                found[layer] = KroneckerFactors(layer, q, g, None, places)
        return found

    def rop(self, x: Tensor | tuple[Tensor, ...], direction: Mapping[str, Tensor]) -> Returned:
        """See :meth:`Trainer.rop`."""
        executable = self._with_directions(
            tangent_program(without_dropout(self._compiled.traced.graph)), [direction]
        )
        executable.load(self._compiled.reader.inputs(x))
        executable.run("gradient", "quadratic")
        return as_returned(self._compiled.traced.graph.output, executable.result("tangent").clone())

    def quadratic(
        self,
        x: Tensor | tuple[Tensor, ...],
        y: Target,
        directions: list[Mapping[str, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Trainer.quadratic`."""
        count = len(directions)
        graph = without_dropout(self._compiled.traced.graph)
        program = quadratic_program(graph, self._compiled.loss, self._settings, count)
        executable = self._with_directions(program, directions)
        executable.memory.states["damping"].fill_(self._compiled.damping or self._settings.damping)
        executable.load(*self._compiled.reader.pair(x, y))
        executable.run("gradient", "quadratic")
        m = [[executable.result(f"M.{i}.{j}") for j in range(count)] for i in range(count)]
        b = [executable.result(f"b.{i}") for i in range(count)]
        return torch.stack([torch.stack(row) for row in m]), torch.stack(b)

    def _with_directions(
        self, program: StepProgram, directions: list[Mapping[str, Tensor]]
    ) -> Executable:
        """An executable beside the trainer's own, with the given directions in its states."""
        executable = self._beside(program)
        for i, direction in enumerate(directions):
            for layer, value in self._compiled.join(direction).items():
                executable.memory.states[f"direction{i}.{layer}"].copy_(value)
        return executable

    def _beside(self, program: StepProgram) -> Executable:
        """An executable beside the trainer's own, of the same parameters."""
        own = self._executable
        return Executable(
            program, self._compiled.traced, self._compiled.loss,
            backend=own.backend, precision=own.memory.precision,
            dtype=own.memory.dtype, device=own.memory.device,
        )  # fmt: skip

    def _run(self, *phases: str) -> None:
        """Phases of a step, which read whatever masks there are, without dropout."""
        self._executable.run(*self._compiled.masks(drops=False), *phases)

    def _load(self, x: Tensor | tuple[Tensor, ...], y: Target) -> None:
        self._executable.load(*self._compiled.reader.pair(x, y))
