"""The trainer: runs the phases of a compiled step, decides which are due, and keeps the user's model safe."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import BatchReader
from ..emit.torch_operations import Options
from ..errors import BatchError, SmallBatchWarning, message
from ..losses import Loss
from ..model_graph import TracedModel
from ..runtime import checkpoint
from ..runtime.executable import Executable
from . import fit
from .ahead import AheadOfHost, DeferredStats
from .averages import Averages
from .damping import JUDGED, ROUNDING, factor_bounds
from .first_order import FirstOrder
from .gather import gather
from .order import reading_order
from .phases import CHOSEN
from .questions import Questions
from .records import StepStats
from .settings import Settings
from .timetable import MEASURED, Due, due, judgement

FEW = 32
"""Samples of a batch below which the trainer warns of noise."""
COUNTERS = ("updates", "_rejected", "_held", "_since_refresh", "_unconfirmed")
"""The trainer's own numbers between steps."""


class Trainer(Questions):
    """A compiled second-order (or first-order baseline) trainer for one model and loss.

    Made by :func:`gncompile.compile`. The model's parameters are updated in place and stay its own.
    ``step`` takes any batch size. A batch with non-finite values is refused with
    :class:`~gncompile.errors.BatchError` and changes nothing; an update after which the loss is not finite,
    or is seen to be higher on the same batch, is undone (the parameters get back their values before it,
    damping rises). The latter is looked at in the first steps, and later whenever the damping is adapted.
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
        self._held = 0  # steps that nothing was learned from
        self.place = fit.Place()
        self._reader = reader
        self._executable = executable
        self._since_refresh = 0
        self._unconfirmed = False  # whether the last update has not been seen to give a finite loss
        self._averages = Averages(executable)
        self._first_batch: weakref.ref[Tensor] | None = None
        self.gathers = False
        """Whether batches are put together for this trainer; without, small ones bring a warning."""
        # Measurements of noise so far, and the samples wanted since the last one.
        self._wanted = (0, 0)
        self._ahead = AheadOfHost(executable, settings) if settings.guarded else None
        self._first_order = None if settings.second_order else FirstOrder(settings, self.trained())

    @property
    def rejected(self) -> int:
        """Updates undone or refused so far."""
        if self._ahead:
            return int(self._executable.memory.states["refused"])
        return self._rejected

    # --- one step -------------------------------------------------------------------------------------

    def step(self, x: Tensor | tuple[Tensor, ...], y: Tensor) -> StepStats | DeferredStats:
        """Update the model's parameters on the batch ``x: [N, …]``, ``y`` (as the loss takes it).

        Curvature is taken from parts of the batch. Each step reads its rows in a random order of its own, so
        theirs does not matter.
        Minibatches of fewer than 32 samples bring a :class:`~gncompile.errors.SmallBatchWarning`;
        :meth:`gather` puts such batches together.

        Raises :class:`~gncompile.errors.BatchError` for a batch of the wrong shape or dtype or with
        non-finite values; nothing is changed then. On a CUDA device the step only begins here: the
        statistics wait for it when they are read, and a bad batch is left out and counted (``rejected``);
        a batch in pinned memory must not be overwritten before.
        """
        inputs = self._reader.inputs(x)
        target = self._reader.target(inputs[0].shape[0], y)
        self._averages.hide()
        self._warn_of_noise(x if isinstance(x, Tensor) else x[0])
        seed = self._executable.memory.draws.seed
        rows = reading_order(self.settings, len(target), self.updates, seed, self.device)
        if self._ahead:
            self._executable.load(inputs, target, rows=rows)
            stats, now = self._ahead.step(self.updates, self._since_refresh)
            self._count_refresh(now)
            self.updates += 1
            return stats
        # Checked before anything runs: tanh(inf) is 1, so a finite loss proves nothing about the batch.
        if not all(math.isfinite(float(part.sum())) for part in (*inputs, target)):
            self._reader.require_finite(inputs, target)
        executable = self._executable
        executable.load(inputs, target, rows=rows)
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

    @property
    def samples_wanted(self) -> int:
        """The samples that the next step should be taken on, as far as the last measurement of noise tells.

        At least ``gather_samples``; growth against noise ends where work buffers would exceed
        ``memory_budget``. 1 for the first-order baselines.
        """
        if not self.settings.second_order:
            return 1
        measured = (self.updates - self._held - 1 + MEASURED // 2) // MEASURED
        if measured != self._wanted[0]:  # on a device reading the state waits for the last step
            state = self._executable.memory.states.get("samples_wanted")
            self._wanted = measured, 0 if state is None else int(state)
        least, wanted = self.settings.gather_samples, self._wanted[1]
        return least if wanted <= least else max(least, min(wanted, self._most_samples))

    @cached_property
    def _most_samples(self) -> int:
        """The samples whose work buffers fit into the memory budget."""
        return self._executable.samples_within(self.settings.memory_budget)

    gather = gather

    def _warn_of_noise(self, x: Tensor) -> None:
        """At the second step, when it is known whether the batch is another one than before."""
        samples, first = len(x), self._first_batch
        if self.updates == 0:
            self._first_batch = weakref.ref(x)
        noisy = samples < FEW and first is not None and first() is not x and not self.gathers
        if self.updates == 1 and noisy and self.settings.second_order:
            warnings.warn(
                message(
                    f"steps on {samples} samples",
                    instead="let the trainer put batches together, with fit or by for x, y in "
                    "trainer.gather(loader): the curvature of so few samples fits their noise, and steps can "
                    "lead astray",
                ),
                SmallBatchWarning,
                stacklevel=3,
            )

    def _second_order_step(self) -> StepStats:
        executable = self._executable
        if not self._number("gradient_square"):
            return self._nothing_learned()
        now = due(self.settings, self.updates - self._held, self._since_refresh)
        if now.comparison:
            executable.run("compare")
        if self.settings.momentum and self._averages.noise_leads:
            now = now.without_momentum()
        if now.factors:
            executable.run("curvature", "columns_begin", "columns", now.inputs)
        # Without fresh factors their buffers hold an earlier batch's, or after a resume nothing.
        if not self._factors_finite(("Q.", "G.", "grad.") if now.factors else ("grad.",)):
            return self._refused()  # no damping would help
        if now.factors:
            executable.run("average")
        self._count_refresh(now)
        if now.factor_damping and self._number("measured"):
            self._choose_factor_damping(now)
        elif now.inverses or now.factor_damping:
            executable.run("invert", "direction", now.quadratic)
        else:
            executable.run("direction", now.quadratic)
        if not self._finite("predicted") or not self._finite("step_size"):
            executable.run("reject")
            return self._refused()
        if not self._number("predicted"):
            return self._nothing_learned()
        if now.noise:
            executable.run("gradient_noise")
        executable.run("update")
        self.updates += 1
        self._unconfirmed = True
        if now.damping:
            looked, change = judgement(now)
            executable.run(*looked)
            if self._number("harm"):
                self._undo(overlong=bool(self._number("measured")))
            else:
                executable.run(change)
        return self._stats(now)

    def _count_refresh(self, now: Due) -> None:
        fresh = now.inverses or now.factor_damping
        self._since_refresh = 0 if fresh else self._since_refresh + 1

    def _choose_factor_damping(self, now: Due) -> None:
        """Of three factor dampings γ take the one whose step is predicted to be best [MG §6.6]."""
        gamma = self._executable.memory.states["factor_damping"]
        base, rate = float(gamma), self.settings.factor_damping_rate
        each = ("invert",) if now.inverts_each else ()
        if not each:
            self._executable.run("invert")

        def attempt(value: float) -> None:
            gamma.fill_(value)
            self._executable.run(*each, "direction", now.quadratic)

        best, lowest = base, 0.0
        for tried in (base, base * rate, base / rate):
            attempt(tried)
            predicted = self._number("predicted")
            if math.isfinite(predicted) and predicted < (1 + ROUNDING) * lowest:
                best, lowest = tried, predicted
        low, high = factor_bounds(self.settings)
        best = min(max(best, low), high)
        if best != tried:
            attempt(best)

    def _stats(self, now: Due) -> StepStats:
        return StepStats(
            self.updates,
            self._number("loss"),
            self._number("objective"),
            self.damping,
            self._number("step_size"),
            self._number("momentum") if self.settings.momentum else None,
            self._number("predicted"),
            self._number("rho") if now.damping and self._number("measured") else None,
            self.rejected,
            float(self._executable.memory.states["noise"]) if now.noise else None,
        )

    def settle(self, x: Tensor | tuple[Tensor, ...], y: Tensor) -> None:
        """Undo the last update if the loss of ``(x, y)`` is not finite after it, as the next step would."""
        self._averages.hide()
        if self._ahead:
            # Only after an update: a refused step would be counted twice.
            if self._executable.memory.states["unconfirmed"] and not math.isfinite(
                float(self.loss(x, y))
            ):
                self._executable.run("gradient", "guard", "guard_step")
        elif self._unconfirmed and not math.isfinite(float(self.loss(x, y))):
            self._undo()

    def finish(self) -> None:
        """Leave in the model what :meth:`evaluate` uses: its averaged parameters, if these are better.

        ``fit`` ends so. Training can go on: the next step takes back the latest parameters, unless the
        model has been given others in the meantime.
        """
        if self._averages.better:
            self._averages.show()

    def _undo(self, overlong: bool = True) -> None:
        """Return to the parameters before the last update, if that is the suspect; ``overlong``: λ rises."""
        if self._unconfirmed and self._first_order:
            self._first_order.undo()
        elif self._unconfirmed:
            self._executable.run("restore", *(("reject",) if overlong else ()))
            self._since_refresh = self.settings.refresh_every
        self._rejected += int(self._unconfirmed)
        self._unconfirmed = False

    def _nothing_learned(self) -> StepStats:
        """No update, and all else holds (``guards.py``): the timetable goes on with the next step.

        One that runs ahead of the host cannot tell it in time, and counts.
        """
        self.updates, self._held = self.updates + 1, self._held + 1
        losses = self._number("loss"), self._number("objective")
        sizes = 0.0, 0.0 if self.settings.momentum else None, 0.0
        return StepStats(self.updates, *losses, self.damping, *sizes, rejected=self.rejected)

    def _refused(self) -> StepStats:
        """No update; the next step refreshes the inverses."""
        self._since_refresh = self.settings.refresh_every
        self._rejected += 1
        self.updates += 1
        loss, objective = self._number("loss"), self._number("objective")
        return StepStats(self.updates, loss, objective, self.damping, rejected=self.rejected)

    def _number(self, role: str) -> float:
        states = self._executable.memory.states
        if role in CHOSEN:
            return float(states["step_sizes"][CHOSEN[role]])
        if role in JUDGED:
            return float(states[role])
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
    def dtype(self) -> torch.dtype:
        """The precision everything is computed in."""
        return self._executable.memory.dtype

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self._executable.memory.device

    @property
    def backend(self) -> str:
        """``"torch"``, ``"triton"`` or ``"reference"``."""
        return self._executable.backend

    @property
    def precision(self) -> str:
        """That of the Triton backend's float32 products."""
        return self._executable.memory.precision

    @property
    def variants(self) -> Mapping[str, Options]:
        """Options of the instructions that are not computed in the default way, by name."""
        return self._executable.variants

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
            "model": {**checkpoint.model_tensors(self.model), **self._averages.latest()},
            "states": dict(memory.states),
            "optimiser": self._first_order.state_dict() if self._first_order else {},
            "generator": memory.draws.state_dict(),
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "place": self.place.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; :class:`~gncompile.errors.CheckpointError`, and nothing is
        changed, if it is another model's. Random draws start again from the seed where the state is that of
        another kind of generator: of the Triton backend for any other, or of torch's on another device."""
        checkpoint.check_state(self, state)
        self._averages.forget()
        checkpoint.copy_tensors(checkpoint.model_tensors(self.model), state["model"])
        memory = self._executable.memory
        checkpoint.copy_tensors(memory.states, {**memory.initial_scalars(), **state["states"]})
        if self._first_order:
            self._first_order.load_state_dict(state["optimiser"])
        self._executable.memory.draws.load_state_dict(state["generator"])
        for name in COUNTERS:
            setattr(self, name, state["counters"].get(name, 0))
        self._wanted = 0, 0
        self.place.load_state_dict(state["place"])

    save = checkpoint.save
    resume = staticmethod(checkpoint.resume)
    fit = fit.fit
