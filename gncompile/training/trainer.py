"""The trainer: runs the phases of a compiled step, decides which are due, and keeps the user's model safe."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NoReturn

from torch import Tensor, nn

from ..base.settings import Settings
from ..derivation.damping import JUDGED, ROUNDING, factor_bounds
from ..derivation.optimiser import CHOSEN
from ..errors import GncompileError, message
from ..graph.model_graph import TracedModel
from ..losses.vocabulary import Loss
from ..program.phases import Repeat, Stage, due_phases, names
from ..program.timetable import MEASURED, Due, due
from ..runtime.executable import Executable
from . import checkpoint, fit, state
from .ahead import AheadOfHost, DeferredStats
from .batches import BatchReader
from .first_order import FirstOrder
from .gather import gather, warn_of_few
from .model_identity import ModelIdentity
from .nonfinite import refuse_loss
from .order import reading_order
from .place import Place
from .questions import Questions
from .records import StepStats
from .reported import Reported
from .state import COUNTERS
from .transaction import Journal


class Trainer(Questions):
    """A compiled second-order (or first-order baseline) trainer for one model and loss.

    Made by :func:`gncompile.compile`. The model's parameters are updated in place and stay its own.
    ``step`` takes any batch size. A batch with non-finite values is refused with
    :class:`~gncompile.errors.BatchError` and changes nothing; an update after which the loss is not finite,
    or is seen to be higher on the same batch, is undone (the parameters get back their values before it,
    damping rises). The latter is looked at in the first steps, and later whenever the damping is adapted.

    A step is a transaction: if it is interrupted, by Ctrl-C or any exception, all is as before it.

    The reported parameters, the averages where these are better and else the latest
    (:mod:`gncompile.training.reported`), are what :meth:`evaluate` and :meth:`predict` speak of, what a
    checkpoint's ``model/…`` holds, and what the model holds after ``fit``, ``finish`` and ``resume``. In a
    loop of steps the model holds the latest; ``loss`` and ``gradients`` take what it holds.

    The model may get other tensors between steps (``load_state_dict``, ``param.data = …``); one that computes
    something else, or is trained in other parts, is refused by whatever is called next, with
    :class:`~gncompile.errors.ModelChangedError` (:mod:`gncompile.training.model_identity`).
    ``copy.deepcopy`` gives an independent trainer with a model of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: TracedModel,
        loss: Loss,
        reader: BatchReader,
        settings: Settings,
        executable: Executable,
        identity: ModelIdentity,
    ) -> None:
        self.model = model
        self.traced = traced
        self.loss_function = loss
        self.settings = settings
        self.updates = 0
        self._rejected = 0
        self._held = 0  # steps that nothing was learned from
        self.place = Place()
        self._reader = reader
        self._executable = executable
        self._since_refresh = 0
        self._unconfirmed = False  # whether the last update has not been seen to give a finite loss
        self._identity = identity
        self._reported = Reported(executable, ahead=settings.guarded)
        self._journal = Journal(executable, self._numbers, self._restore, self._reported.note)
        self._reported.surely = self._journal.surely
        self._first_batch: weakref.ref[Tensor] | None = None
        self.gathers = False
        """Whether batches are put together for this trainer; without, small ones bring a warning."""
        # Measurements of noise so far, and the samples wanted since the last one.
        self._wanted = (0, 0)
        before = self._journal.before
        self._ahead = AheadOfHost(executable, settings, before) if settings.guarded else None
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
        self.ready()
        inputs, target = self._reader.pair(x, y)
        self._reported.hide()
        self._warn_of_noise(x if isinstance(x, Tensor) else x[0])
        if not self._ahead:
            # Before anything runs: tanh(inf) is 1, so a finite loss proves nothing about the batch.
            self._reader.all_finite(inputs, target)
        return self._journal.whole(partial(self._step, inputs, target))

    def _step(self, inputs: tuple[Tensor, ...], target: Tensor) -> StepStats | DeferredStats:
        """One step on a batch; the position in the data is a part of it."""
        seed = self._executable.memory.draws.seed
        rows = reading_order(self.settings, len(target), self.updates, seed, self.device)
        self._executable.load(inputs, target, rows=rows)
        stats: StepStats | DeferredStats
        if self._ahead:
            stats, now = self._ahead.step(self.updates, self._since_refresh)
            self._count_refresh(now)
            self.updates += 1
        else:
            stats = self._looked_after_step(inputs, target)
        self.place.taken()
        return stats

    def _looked_after_step(self, inputs: tuple[Tensor, ...], target: Tensor) -> StepStats:
        """A step whose every part the host looks at."""
        self._run("gradient")
        if not self._finite("objective"):
            self._undo()
            self._run("gradient")
            if not self._finite("objective"):
                about = f"update {self.updates}, at the last parameters known to be good"
                batch = inputs, target
                refuse_loss(self._number("loss"), self.traced, self.loss_function, *batch, about)
        self._unconfirmed = False
        if self._first_order:
            if not self._factors_finite():
                return self._refused()
            kept = self._first_order.tensors().items()
            self._journal.keep({("first order", name): tensor for name, tensor in kept})
            self._first_order.step(self._gradient_views())
            self.updates += 1
            self._unconfirmed = True
            return StepStats(self.updates, self._number("loss"), self._number("objective"))
        return self._second_order_step()

    def _run(self, *phases: str) -> None:
        """Run phases, having noted what they overwrite."""
        self._journal.run(*phases)

    def _run_due(self, now: Due, stage: Stage) -> None:
        """Run what is due of a part of the step."""
        self._run(*names(due_phases(self._executable.program.step, now, stage)))

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
        if self.updates == 0:
            self._first_batch = weakref.ref(x)
        first = self._first_batch
        another = first is not None and first() is not x
        if self.updates == 1 and another and not self.gathers and self.settings.second_order:
            warn_of_few(len(x))

    def _second_order_step(self) -> StepStats:
        if not self._number("gradient_square"):
            return self._nothing_learned()
        now = due(self.settings, self.updates - self._held, self._since_refresh)
        self._run_due(now, Stage.COMPARISON)
        if self.settings.momentum and self._reported.noise_leads:
            now = replace(now, plain=True)
        self._run_due(now, Stage.MEASUREMENT)
        # Without fresh factors their buffers hold an earlier batch's, or after a resume nothing.
        if not self._factors_finite(("Q.", "G.", "grad.") if now.factors else ("grad.",)):
            return self._refused()  # no damping would help
        self._run_due(now, Stage.KEEPING)
        self._count_refresh(now)
        if now.factor_damping and self._number("measured"):
            self._choose_factor_damping(now)
        else:
            self._run_due(now, Stage.DIRECTION)
        if not self._finite("predicted") or not self._finite("step_size"):
            self._run("reject")
            return self._refused()
        if not self._number("predicted"):
            return self._nothing_learned()
        self._run_due(now, Stage.UPDATE)
        self.updates += 1
        self._unconfirmed = True
        if now.damping:
            self._run_due(now, Stage.JUDGEMENT)
            if self._number("harm"):
                self._undo(overlong=bool(self._number("measured")))
            else:
                self._run_due(now, Stage.DAMPING)
        return self._stats(now)

    def _count_refresh(self, now: Due) -> None:
        self._since_refresh = 0 if now.fresh else self._since_refresh + 1

    def _choose_factor_damping(self, now: Due) -> None:
        """Of three factor dampings γ take the one whose step is predicted to be best [MG §6.6]."""
        gamma = self._executable.memory.states["factor_damping"]
        self._journal.keep_states("factor_damping")
        base, rate = float(gamma), self.settings.factor_damping_rate
        phases = due_phases(self._executable.program.step, now, Stage.DIRECTION)
        each = names(phase for phase in phases if phase.repeat is Repeat.DAMPINGS)
        self._run(*names(phase for phase in phases if phase.repeat is Repeat.ONCE))

        def attempt(value: float) -> None:
            gamma.fill_(value)
            self._run(*each)

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
        self.ready()
        self._reported.hide()
        # Only after an update: a refused step would be counted twice.
        judged = self._executable.memory.states["unconfirmed"] if self._ahead else self._unconfirmed
        if not judged or math.isfinite(float(self.loss(x, y))):
            return
        phases = ("gradient", "guard", "guard_step")
        self._journal.whole(partial(self._run, *phases) if self._ahead else self._undo)

    def finish(self) -> None:
        """Leave in the model what is reported: its averaged parameters, if these are better.

        ``fit`` ends so. Training can go on: the next step takes back the latest parameters, unless the
        model has been given others in the meantime.
        """
        self.ready()
        if self._reported.better:
            self._reported.show()

    def _undo(self, overlong: bool = True) -> None:
        """Return to the parameters before the last update, if that is the suspect; ``overlong``: λ rises."""
        if self._unconfirmed and self._first_order:
            self._first_order.undo()
        elif self._unconfirmed:
            self._run("restore", *(("reject",) if overlong else ()))
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

    # --- Whole and the model's ------------------------------------------------------------------------

    def ready(self) -> None:
        """See :meth:`Questions.ready`."""
        self._journal.recover()
        traced = self._identity.changes()
        if traced is not None:
            self.traced = traced
            self._executable.rebind(traced)
            self._journal.rebound()
            if self._first_order:
                self._first_order.rebind(self.trained())
            if self._ahead:
                self._ahead.keep_parameters()
            self._unconfirmed = False  # what is unconfirmed were others
        self._reported.look()

    def _numbers(self) -> dict[str, Any]:
        """What a step changes besides tensors."""
        begun = self._first_order.begun if self._first_order else True
        counters = {name: getattr(self, name) for name in COUNTERS}
        return {"counters": counters, "position": self.place.position, "begun": begun}

    def _restore(self, numbers: Mapping[str, Any]) -> None:
        """Take back what :meth:`_numbers` gave."""
        for name, value in numbers["counters"].items():
            setattr(self, name, value)
        self.place.position = numbers["position"]
        if self._first_order and not numbers["begun"]:
            self._first_order.restart()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise GncompileError(
            message(
                "a trainer cannot be pickled, nor copied without its model",
                instead="write it with trainer.save(path) and read it with Trainer.resume(path, model); "
                "copy.deepcopy(trainer) makes an independent one",
            )
        )

    state_dict = state.state_dict
    load_state_dict = state.load_state_dict
    __deepcopy__ = state.independent
    save = checkpoint.save
    resume = staticmethod(checkpoint.resume)
    fit = fit.fit
