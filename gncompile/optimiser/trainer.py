"""The trainer: runs the phases of a compiled step, decides which are due, and keeps the user's model safe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import BatchReader
from ..errors import BatchError, message
from ..factors import KroneckerFactors
from ..losses import Loss
from ..model_graph import Affine, TracedModel
from ..pipeline import quadratic_program, tangent_program
from ..runtime import checkpoint
from ..runtime.executable import Executable
from ..runtime.memory import dense
from ..step_program import StepProgram
from . import fit
from .ahead import AheadOfHost, DeferredStats
from .first_order import FirstOrder
from .phases import CHOSEN
from .records import StepStats
from .reports import Reports
from .settings import Settings
from .timetable import Due, due

COUNTERS = ("updates", "_rejected", "_since_refresh", "_unconfirmed")
"""The trainer's own numbers between steps."""


class Trainer(Reports):
    """A compiled second-order (or first-order baseline) trainer for one model and loss.

    Made by :func:`gncompile.compile`. The model's parameters are updated in place and stay its own.
    ``step`` takes any batch size. A batch with non-finite values is refused with
    :class:`~gncompile.errors.BatchError` and changes nothing; an update after which the loss is not finite
    is undone (parameters and factors keep their last good values, damping rises).
    """

    def __init__(
        self,
        model: nn.Module,
        traced: TracedModel,
        loss: Loss,
        reader: BatchReader,
        settings: Settings,
        executable: Executable,
    ) -> None:
        self.model = model
        self.traced = traced
        self.loss_function = loss
        self.settings = settings
        self.updates = 0
        self._rejected = 0
        self.place = fit.Place()
        self._reader = reader
        self._executable = executable
        self._since_refresh = 0
        self._unconfirmed = False  # whether the last update has not been seen to give a finite loss
        self._ahead = AheadOfHost(executable, settings) if settings.guarded else None
        self._first_order = None if settings.second_order else FirstOrder(settings, self.trained())

    @property
    def rejected(self) -> int:
        """Updates undone or refused so far."""
        if self._ahead:
            return int(self._executable.memory.states["refused"])
        return self._rejected

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

    # --- one step -------------------------------------------------------------------------------------

    def step(self, x: Tensor | tuple[Tensor, ...], y: Tensor) -> StepStats | DeferredStats:
        """Update the model's parameters on the batch ``x: [N, …]``, ``y`` (as the loss takes it).

        Raises :class:`~gncompile.errors.BatchError` for a batch of the wrong shape or dtype or with
        non-finite values; nothing is changed then. On a CUDA device the step only begins here: the
        statistics wait for it when they are read, and a bad batch is left out and counted (``rejected``).
        """
        inputs = self._reader.inputs(x)
        target = self._reader.target(inputs[0].shape[0], y)
        if self._ahead:
            self._executable.load(inputs, target)
            stats, now = self._ahead.step(self.updates, self._since_refresh)
            self._count_refresh(now)
            self.updates += 1
            return stats
        # Checked before anything runs: tanh(inf) is 1, so a finite loss proves nothing about the batch.
        if not all(math.isfinite(float(part.sum())) for part in (*inputs, target)):
            self._reader.require_finite(inputs, target)
        executable = self._executable
        executable.load(inputs, target)
        executable.run("gradient")
        if not self._finite("objective"):
            self._undo()
            executable.run("gradient")
            if not self._finite("objective"):
                raise BatchError(
                    message(
                        f"the loss is {self._number('loss')} on a batch of finite values",
                        where=f"update {self.updates}, at the last parameters known to be good",
                        instead="check the scale of the inputs and initial weights; the step was refused, "
                        "parameters are unchanged",
                    )
                )
        self._unconfirmed = False
        if self._first_order:
            if not self._factors_finite():
                return self._refused()
            self._first_order.step(self._gradient_views())
            self.updates += 1
            self._unconfirmed = True
            return StepStats(self.updates, self._number("loss"), self._number("objective"))
        return self._second_order_step()

    def _second_order_step(self) -> StepStats:
        executable = self._executable
        now = due(self.settings, self.updates, self._since_refresh)
        if now.factors:
            executable.run("curvature", "columns_begin", "columns")
        # Without fresh factors their buffers hold an earlier batch's, or after a resume nothing.
        if not self._factors_finite(("Q.", "G.", "grad.") if now.factors else ("grad.",)):
            return self._refused()
        if now.factors:
            executable.run("average")
        self._count_refresh(now)
        if now.factor_damping:
            self._choose_factor_damping(now)
        elif now.inverses:
            executable.run("invert", "direction", now.quadratic)
        else:
            executable.run("direction", now.quadratic)
        if not self._finite("predicted") or not self._finite("step_size"):
            return self._refused()
        executable.run("update")
        self.updates += 1
        self._unconfirmed = True
        if now.damping:
            executable.run("predict", "evaluate", "adapt")
        return self._stats(rho=self._number("rho") if now.damping else None)

    def _count_refresh(self, now: Due) -> None:
        fresh = now.inverses or now.factor_damping
        self._since_refresh = 0 if fresh else self._since_refresh + 1

    def _choose_factor_damping(self, now: Due) -> None:
        """Of three factor dampings γ take the one whose step is predicted to be best [MG §6.6]."""
        gamma = self._executable.memory.states["factor_damping"]
        base, rate, predicted = float(gamma), self.settings.factor_damping_rate, {}
        each = ("invert",) if now.inverts_each else ()
        if not each:
            self._executable.run("invert")

        def attempt(value: float) -> None:
            gamma.fill_(value)
            self._executable.run(*each, "direction", now.quadratic)

        for tried in (base / rate, base * rate, base):
            attempt(tried)
            value = self._number("predicted")
            predicted[tried] = value if math.isfinite(value) else math.inf
        best = min(predicted, key=predicted.__getitem__)
        if best != base:
            attempt(best)

    def _stats(self, rho: float | None = None) -> StepStats:
        return StepStats(
            self.updates,
            self._number("loss"),
            self._number("objective"),
            self.damping,
            self._number("step_size"),
            self._number("momentum") if self.settings.momentum else None,
            self._number("predicted"),
            rho,
            self.rejected,
        )

    def settle(self, x: Tensor | tuple[Tensor, ...], y: Tensor) -> None:
        """Undo the last update if the loss of ``(x, y)`` is not finite after it, as the next step would."""
        if self._unconfirmed and not math.isfinite(float(self.loss(x, y))):
            self._undo()

    def _undo(self) -> None:
        """Return to the parameters before the last update, if that update is the suspect."""
        if self._unconfirmed and self._first_order:
            self._first_order.undo()
        elif self._unconfirmed:
            self._executable.run("restore", "reject")
            self._since_refresh = self.settings.refresh_every
        self._rejected += int(self._unconfirmed)
        self._unconfirmed = False

    def _refused(self) -> StepStats:
        """No update: raise the damping and refresh the inverses at the next step."""
        self._executable.run("reject")
        self._since_refresh = self.settings.refresh_every
        self._rejected += 1
        self.updates += 1
        loss, objective = self._number("loss"), self._number("objective")
        return StepStats(self.updates, loss, objective, self.damping, rejected=self.rejected)

    def _number(self, role: str) -> float:
        if role in CHOSEN:
            return float(self._executable.memory.states["step_sizes"][CHOSEN[role]])
        return float(self._executable.result(role))

    def _finite(self, role: str) -> bool:
        return math.isfinite(self._number(role))

    def _factors_finite(self, kinds: tuple[str, ...] = ("grad.",)) -> bool:
        """Whether gradients and factors, if any, are finite; for a PSD matrix its diagonal tells."""
        for role in self._executable.program.results:
            if role.startswith(kinds):
                value = self._executable.result(role)
                square = value.dim() == 2 and not role.startswith("grad.")
                if not math.isfinite(float((value.diagonal() if square else value).sum())):
                    return False
        return True

    @property
    def damping(self) -> float | None:
        """The Levenberg-Marquardt damping λ; None for first-order methods."""
        state = self._executable.memory.states.get("damping")
        return None if state is None or self._first_order else float(state)

    # --- questions ------------------------------------------------------------------------------------

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
        """The data loss of a whole data set, in batches; at the averaged parameters if there are any.

        The mean over samples (the sum, for losses that sum). ``averaged=False`` asks for the current
        parameters.
        """
        count = (x if isinstance(x, Tensor) else x[0]).shape[0]
        sums = self.loss_function.scale.over == "sum"
        total = 0.0
        with self.averaged_parameters(self.settings.average > 0 if averaged is None else averaged):
            for start in range(0, count, batch_size):
                part = slice(start, start + batch_size)
                xs = x[part] if isinstance(x, Tensor) else tuple(t[part] for t in x)
                share = 1.0 if sums else y[part].shape[0] / count
                total += float(self.loss(xs, y[part])) * share
        return total

    @contextmanager
    def averaged_parameters(self, active: bool = True) -> Iterator[None]:
        """Within this block the model's parameters are their running averages (``Settings.average``)."""
        states = self._executable.memory.states
        pairs = [
            (self._executable.memory.parameter(leaf.op.key), states[f"average.{leaf.name}"])  # type: ignore
            for leaf in self._executable.program.leaves("parameter")
            if f"average.{leaf.name}" in states
        ]
        active = active and bool(pairs) and float(states["averaged"]) > 0
        saved = [parameter.clone() for parameter, _ in pairs] if active else []
        try:
            for parameter, average in pairs if active else []:
                parameter.copy_(average)
            yield
        finally:
            for (parameter, _), old in zip(pairs, saved, strict=False):
                parameter.copy_(old)

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

    @property
    def dtype(self) -> torch.dtype:
        """The precision everything is computed in."""
        return self._executable.memory.dtype

    @property
    def backend(self) -> str:
        """``"torch"``, ``"triton"`` or ``"reference"``."""
        return self._executable.backend

    @property
    def precision(self) -> str:
        """That of the Triton backend's float32 products."""
        return self._executable.memory.precision

    def __repr__(self) -> str:
        return (
            f"Trainer({self.traced.name}, {self.settings.method}, {len(self.traced.graph.layers)} layers, "
            f"{self.updates} updates)"
        )

    # --- state ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a step reads or writes: groups of tensors by name (not copied), and plain numbers."""
        memory = self._executable.memory
        return {
            "model": checkpoint.model_tensors(self.model),
            "states": dict(memory.states),
            "optimiser": self._first_order.state_dict() if self._first_order else {},
            "generator": {"state": memory.generator.get_state()},
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "place": self.place.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; :class:`~gncompile.errors.CheckpointError`, and nothing is
        changed, if it is another model's."""
        checkpoint.check_state(self, state)
        checkpoint.copy_tensors(checkpoint.model_tensors(self.model), state["model"])
        checkpoint.copy_tensors(self._executable.memory.states, state["states"])
        if self._first_order:
            self._first_order.load_state_dict(state["optimiser"])
        self._executable.memory.generator.set_state(state["generator"]["state"].cpu())
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        self.place.load_state_dict(state["place"])

    save = checkpoint.save
    resume = staticmethod(checkpoint.resume)
    fit = fit.fit
