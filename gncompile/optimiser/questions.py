"""What a trainer can be asked besides a step: gradients, losses, predictions, factors, quadratic models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from ..batches import BatchReader
from ..factors import KroneckerFactors
from ..model_graph import Affine
from ..pipeline import quadratic_program, tangent_program
from ..runtime.executable import Executable
from ..runtime.memory import dense
from ..step_program import StepProgram
from .averages import Averages
from .reports import Reports


class Questions(Reports):
    """The part of :class:`~gncompile.optimiser.trainer.Trainer` that changes nothing."""

    updates: int
    _reader: BatchReader
    _averages: Averages

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

    def check_batch(self, x: Tensor | tuple[Tensor, ...], y: Tensor) -> None:
        """Raise :class:`~gncompile.errors.BatchError` if no step can be taken on ``(x, y)``.

        Values are looked at only where this does not mean to wait for a device.
        """
        device = y.device
        reader = replace(self._reader, device=device)
        inputs = reader.inputs(x)
        target = reader.target(inputs[0].shape[0], y)
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
        """The inverse of :meth:`split`; missing parameters count as zero."""
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
        """The data loss of one batch at the current parameters, a scalar tensor."""
        self._load(x, y)
        self._executable.run("predict", "evaluate")
        return self._executable.result("evaluated_loss").clone()

    def predict(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The network output ``[N, …]`` at the current parameters, by the compiled forward pass."""
        inputs = self._reader.inputs(x)
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
        """The data loss of a whole data set, in batches.

        The mean over samples (the sum, for losses that sum), at the averaged parameters if these are better,
        as far as the last comparison tells; ``averaged=True`` asks for them, ``averaged=False`` for the
        latest.
        """
        count = (x if isinstance(x, Tensor) else x[0]).shape[0]
        sums = self.loss_function.scale.over == "sum"
        total = 0.0
        with self.averaged_parameters(averaged):
            for start in range(0, count, batch_size):
                part = slice(start, start + batch_size)
                xs = x[part] if isinstance(x, Tensor) else tuple(t[part] for t in x)
                share = 1.0 if sums else y[part].shape[0] / count
                total += float(self.loss(xs, y[part])) * share
        return total

    def averaged_parameters(self, averaged: bool | None = True) -> AbstractContextManager[None]:
        """Within this block the model holds its averaged parameters (``Settings.average``).

        With ``averaged=None`` only if they are better, as far as the last comparison tells; with False the
        latest. A trainer without an average, or without an update, always has the latest.
        """
        return self._averages.shown(self._averages.better if averaged is None else averaged)

    def factors(self) -> dict[str, KroneckerFactors]:
        """The running averages of the curvature factors by layer, in full; empty before the first step."""
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
        inputs = self._reader.inputs(x)
        executable.load(inputs, self._reader.target(inputs[0].shape[0], y))
        executable.run("gradient", "quadratic")
        m = [[executable.result(f"M.{i}.{j}") for j in range(count)] for i in range(count)]
        b = [executable.result(f"b.{i}") for i in range(count)]
        return torch.stack([torch.stack(row) for row in m]), torch.stack(b)

    def _with_directions(
        self, program: StepProgram, directions: list[Mapping[str, Tensor]]
    ) -> Executable:
        """An executable beside the trainer's own, with the given directions in its states."""
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
        inputs = self._reader.inputs(x)
        self._executable.load(inputs, self._reader.target(inputs[0].shape[0], y))
