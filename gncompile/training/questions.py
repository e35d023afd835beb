"""What a trainer can be asked besides a step: gradients, losses, predictions, factors, quadratic models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import BatchError, expected_got, message, require_whole
from ..graph.model_graph import Affine
from ..pipeline import quadratic_program, tangent_program
from ..program.step_program import StepProgram
from ..runtime.executable import Executable
from ..runtime.memory import dense
from .batches import BatchReader, input_tensors, require_real
from .factors import KroneckerFactors
from .reported import Reported
from .reports import Reports


class Questions(Reports):
    """The part of :class:`~gncompile.training.trainer.Trainer` that changes nothing."""

    _reader: BatchReader
    _reported: Reported

    @property
    def damping(self) -> float | None:
        """The Levenberg-Marquardt damping λ; None for first-order methods."""
        state = self._executable.memory.states.get("damping")
        return float(state) if state is not None and self.settings.second_order else None

    def trained(self) -> dict[str, Tensor]:
        """The parameters this trainer updates, by name, in graph order."""
        trained: dict[str, Tensor] = {}
        for node in self.traced.graph.layers.values():
            assert isinstance(node.op, Affine)
            names = [node.op.weight] + (
                [node.op.bias] if node.op.homogeneous and node.op.bias else []
            )
            trained |= {name: self.traced.parameters[name].detach() for name in names}
        return trained

    def ready(self) -> None:
        """Before any use: the model is the one that was compiled, and its parameters are whole.

        Follows the model to other tensors of the same shapes. Raises
        :class:`~gncompile.errors.ModelChangedError` if it is another one.
        """
        raise NotImplementedError

    def check_batch(self, x: Tensor | tuple[Tensor, ...], y: Tensor) -> None:
        """Raise :class:`~gncompile.errors.BatchError` if no step can be taken on ``(x, y)``.

        Values are looked at only where this does not mean to wait for a device.
        """
        device = require_real(y, "the target").device
        valueless = device.type == "meta"
        reader = self._reader if valueless else replace(self._reader, device=device)
        inputs, target = reader.pair(x, y)
        if device.type == "cpu":
            reader.require_finite(inputs, target)

    def gradients(self, x: Tensor | tuple[Tensor, ...], y: Tensor) -> dict[str, Tensor]:
        """``∂Ē/∂θ`` of the objective (L2 included) by parameter name, as autograd would give it."""
        self._load(x, y)
        self._executable.run("gradient")
        return {name: value.clone() for name, value in self._gradient_views().items()}

    def _gradient_views(self) -> dict[str, Tensor]:
        return self.split({
            role.removeprefix("grad."): self._executable.result(role)
            for role in self._executable.program.results if role.startswith("grad.")
        })  # fmt: skip

    def split(self, by_layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values shaped like ``W̄ = [W, b]`` by layer as views by parameter name."""
        views = {}
        for layer, value in by_layer.items():
            op = self.traced.graph.layers[layer].op
            assert isinstance(op, Affine)
            views[op.weight] = value[:, :-1] if op.homogeneous else value
            if op.homogeneous and op.bias:
                views[op.bias] = value[:, -1]
        return views

    def join(self, by_parameter: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`split`; missing parameters count as zero.

        Raises :class:`~gncompile.errors.BatchError` for names and shapes that the trained parameters lack.
        """
        trained = self.trained()
        for name, value in by_parameter.items():
            wanted = list(trained[name].shape) if name in trained else "no trained parameter"
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if wanted != found:
                raise BatchError(
                    message(
                        f"the direction has {name!r}\n{expected_got(wanted, found)}",
                        instead=f"give tensors shaped like {', '.join(trained)}",
                    )
                )
        joined = {}
        for layer, node in self.traced.graph.layers.items():
            op = node.op
            assert isinstance(op, Affine)
            columns = self.traced.graph[node.inputs[0]].size + int(op.homogeneous)
            memory = self._executable.memory
            joined[layer] = torch.zeros(
                node.size, columns, dtype=memory.dtype, device=memory.device
            )
            for name, view in self.split({layer: joined[layer]}).items():
                if name in by_parameter:
                    view.copy_(by_parameter[name])
        return joined

    def loss(self, x: Tensor | tuple[Tensor, ...], y: Tensor) -> Tensor:
        """The data loss of one batch at the parameters that the model holds, a scalar tensor."""
        self._load(x, y)
        self._executable.run("predict", "evaluate")
        return self._executable.result("evaluated_loss").clone()

    def predict(self, x: Tensor | tuple[Tensor, ...], averaged: bool | None = None) -> Tensor:
        """The network output ``[N, …]`` by the compiled forward pass, at the parameters of :meth:`evaluate`.

        ``averaged`` is as there. Raises :class:`~gncompile.errors.BatchError` for no samples.
        """
        self.ready()
        inputs = self._reader.inputs(x)
        with self.averaged_parameters(averaged):
            self._executable.load(inputs)
            self._executable.run("predict")
            output = self._executable.result("output")
            return output.clone().reshape(-1, *self.traced.graph.output.shape)

    def evaluate(
        self,
        x: Tensor | tuple[Tensor, ...],
        y: Tensor,
        batch_size: int = 1000,
        averaged: bool | None = None,
    ) -> float:
        """The data loss of a whole data set at the reported parameters, in batches.

        The mean over samples (the sum, for losses that sum). *Reported* are the averaged parameters if these
        are better, as far as the last comparison tells, and else the latest: what :meth:`predict` uses too,
        a checkpoint's ``model/…`` holds, and the model itself after ``fit`` and ``finish``.
        ``averaged=True`` asks for the averages, ``averaged=False`` for the latest.

        Raises :class:`~gncompile.errors.BatchError` for no samples, other numbers of inputs and targets, and
        values that are not finite.
        """
        self.ready()
        require_whole("batch_size", batch_size)
        given = input_tensors(x)
        count = len(given[0])
        sizes = [*map(len, given), len(require_real(y, "the target"))]
        if count == 0 or len(set(sizes)) > 1:
            raise BatchError(
                message(
                    f"{' and '.join(map(str, sizes[:-1]))} inputs, and {sizes[-1]} targets",
                    where="evaluate",
                    instead="pass one row a sample in each, and one sample at least",
                )
            )
        sums = self.loss_function.scale.over == "sum"
        total = 0.0
        with self.averaged_parameters(averaged):
            for start in range(0, count, batch_size):
                part = slice(start, start + batch_size)
                inputs, target = self._reader.pair(tuple(t[part] for t in given), y[part])
                self._reader.all_finite(inputs, target)
                share = 1.0 if sums else len(target) / count
                self._executable.load(inputs, target)
                self._executable.run("predict", "evaluate")
                total += float(self._executable.result("evaluated_loss")) * share
        return total

    def averaged_parameters(self, averaged: bool | None = True) -> AbstractContextManager[None]:
        """Within this block the model holds its averaged parameters (``Settings.average``).

        With ``averaged=None`` only if they are better, as far as the last comparison tells; with False the
        latest. A trainer without an average, or without an update, always has the latest.
        """
        self.ready()
        return self._reported.shown(self._reported.better if averaged is None else averaged)

    def factors(self) -> dict[str, KroneckerFactors]:
        """The running averages of the curvature factors by layer, in full; empty before the first step."""
        self.ready()
        states, program = self._executable.memory.states, self._executable.program
        found = {}
        for layer in self.traced.graph.layers:
            pair = [f"Q.{layer}", f"G.{layer}"]
            if self.updates and all(key in states for key in pair):
                q, g = (dense(states[key], program.states[key].spec).clone() for key in pair)
                found[layer] = KroneckerFactors(layer, q, g)
        return found

    def rop(self, x: Tensor | tuple[Tensor, ...], direction: Mapping[str, Tensor]) -> Tensor:
        """R-operator: ``(∂z/∂θ) direction`` for one direction by parameter name: ``[N, …]``."""
        executable = self._with_directions(tangent_program(self.traced.graph), [direction])
        executable.load(self._reader.inputs(x))
        executable.run("gradient", "quadratic")
        return executable.result("tangent").clone().reshape(-1, *self.traced.graph.output.shape)

    def quadratic(
        self,
        x: Tensor | tuple[Tensor, ...],
        y: Tensor,
        directions: list[Mapping[str, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """``M_ij = d_iᵀ(G + κI)d_j`` and ``b_i = d_iᵀ∇`` of the full Gauss-Newton quadratic [MG §7]."""
        count = len(directions)
        program = quadratic_program(self.traced.graph, self.loss_function, self.settings, count)
        executable = self._with_directions(program, directions)
        executable.memory.states["damping"].fill_(self.damping or self.settings.damping)
        executable.load(*self._reader.pair(x, y))
        executable.run("gradient", "quadratic")
        m = [[executable.result(f"M.{i}.{j}") for j in range(count)] for i in range(count)]
        b = [executable.result(f"b.{i}") for i in range(count)]
        return torch.stack([torch.stack(row) for row in m]), torch.stack(b)

    def _with_directions(
        self, program: StepProgram, directions: list[Mapping[str, Tensor]]
    ) -> Executable:
        """An executable beside the trainer's own, with the given directions in its states."""
        self.ready()
        own = self._executable
        executable = Executable(
            program, self.traced, self.loss_function,
            backend=own.backend, precision=own.memory.precision,
            dtype=own.memory.dtype, device=own.memory.device,
        )  # fmt: skip
        for i, direction in enumerate(directions):
            for layer, value in self.join(direction).items():
                executable.memory.states[f"direction{i}.{layer}"].copy_(value)
        return executable

    def _load(self, x: Tensor | tuple[Tensor, ...], y: Tensor) -> None:
        self.ready()
        self._executable.load(*self._reader.pair(x, y))
