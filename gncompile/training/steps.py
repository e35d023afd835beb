"""One step as the host looks after it: which phases run, what is refused, and what is undone."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from ..derivation.damping import ROUNDING, TRIED, factor_bounds
from ..derivation.guards import ITERATED
from ..program.phases import Repeat, Stage, due_phases, names
from ..program.timetable import Due, due
from .compiled import Compiled
from .counters import Counters
from .first_order import FirstOrder
from .nonfinite import refuse_loss
from .records import StepStats
from .reported import Reported
from .transaction import Journal


class LookedAfter:
    """Steps every part of which the host looks at, of second order or of a baseline.

    (:class:`~gncompile.training.ahead.AheadOfHost` has those of a program that looks after itself.)
    """

    def __init__(
        self,
        compiled: Compiled,
        count: Counters,
        journal: Journal,
        reported: Reported,
        first_order: FirstOrder | None,
    ) -> None:
        self._compiled, self._settings = compiled, compiled.settings
        self._states = compiled.executable.memory.states
        self._number, self._finite = compiled.number, compiled.finite
        self._factors_finite = compiled.factors_finite
        self._count, self._journal, self._reported = count, journal, reported
        self._first_order = first_order
        self.most_tries = compiled.settings.damping_tries
        """Dampings that a step tries at most, from the next one on."""
        self._parts = {
            stage: tuple(p for p in compiled.program.step if p.stage is stage) for stage in Stage
        }

    def step(self, inputs: tuple[Tensor, ...], target: Tensor) -> StepStats:
        """One step on the loaded batch, which is ``inputs`` and ``target``."""
        self._run(*self._compiled.masks(self._compiled.identity.drops), "gradient")
        if not self._finite("objective"):
            self.undo()
            self._run("gradient")
            if not self._finite("objective"):
                about = f"update {self._count.updates}, at the last parameters known to be good"
                batch = inputs, target
                refuse_loss(
                    self._number("loss"), self._compiled.traced, self._compiled.loss, *batch, about
                )
        self._count.unconfirmed = False
        if self._first_order:
            if not self._factors_finite():
                return self._refused()
            kept = self._first_order.tensors().items()
            self._journal.keep({("first order", name): tensor for name, tensor in kept})
            self._first_order.step(self._compiled.gradient_views())
            self._count.updates += 1
            self._count.unconfirmed = True
            return StepStats(self._count.updates, self._number("loss"), self._number("objective"))
        return self._second_order_step()

    def _run(self, *phases: str) -> None:
        """Run phases, having noted what they overwrite."""
        self._journal.run(*phases)

    def _run_due(self, now: Due, stage: Stage) -> None:
        """Run what is due of a part of the step."""
        self._run(*names(due_phases(self._parts[stage], now)))

    def _second_order_step(self) -> StepStats:
        square = self._number("gradient_square")
        if not square:
            return self._nothing_learned()
        now = due(self._settings, self._count.updates - self._count.held, self._count.since_refresh)
        self._run_due(now, Stage.COMPARISON)
        if self._settings.momentum and self._reported.noise_leads:
            now = replace(now, plain=True)
        self._run_due(now, Stage.MEASUREMENT)
        # Without fresh factors their buffers hold an earlier batch's, or after a resume nothing.
        # Squares of finite gradients may overflow; then the gradients themselves decide.
        kinds = ("Q.", "G.") * now.factors + ("grad.",) * (not math.isfinite(square))
        if kinds and not self._factors_finite(kinds):
            return self._refused()  # no damping would help
        self._run_due(now, Stage.KEEPING)
        self._count.refreshed(now)
        if now.factor_damping and self._number("measured"):
            self._choose_factor_damping(now)
        else:
            self._run_due(now, Stage.DIRECTION)
        tried = 1
        while (stats := self._along_direction(now, tried)) is None:
            self._run("restore", "reject")
            now, tried = replace(now, again=True), tried + 1
            self._run_due(now, Stage.DIRECTION)
        return stats

    def _along_direction(self, now: Due, tried: int) -> StepStats | None:
        """The step with the ``tried``-th damping, unless it raised the loss and the next is to be tried.

        What was measured at the parameters before it still holds, and only the direction is made anew.
        """
        if not self._finite("predicted") or not self._finite("step_size"):
            self._run("reject")
            return self._refused()
        if not self._number("predicted"):
            return self._nothing_learned()
        self._run_due(now, Stage.UPDATE)
        harm = False
        if now.damping:
            self._run_due(now, Stage.JUDGEMENT)
            harm, overlong = (bool(self._number(state)) for state in ("harm", "measured"))
            if harm and overlong and tried < self.most_tries:
                return None
        self._count.updates += 1
        self._count.unconfirmed = True
        if harm:
            self.undo(overlong)
        elif now.damping:
            self._run_due(now, Stage.DAMPING)
        return self._stats(now, tried)

    def _choose_factor_damping(self, now: Due) -> None:
        """Of three factor dampings γ take the one whose step is predicted to be best [MG §6.6]."""
        gamma = self._states["factor_damping"]
        self._journal.keep_states("factor_damping")
        base, rate = float(gamma), TRIED
        phases = due_phases(self._parts[Stage.DIRECTION], now)
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
        low, high = factor_bounds(self._settings)
        best = min(max(best, low), high)
        if best != tried:
            attempt(best)

    def _stats(self, now: Due, tried: int) -> StepStats:
        return StepStats(
            self._count.updates,
            self._number("loss"),
            self._number("objective"),
            self._compiled.damping,
            self._number("step_size"),
            self._number("momentum") if self._settings.momentum else None,
            self._number("predicted"),
            self._number("rho") if now.damping and self._number("measured") else None,
            self._count.rejected,
            float(self._states["noise"]) if now.noise else None,
            tried,
            *self._iterated(),
        )

    def _iterated(self) -> tuple[int | None, float | None]:
        """The products of conjugate gradients, and what they leave."""
        if not self._settings.iterates:
            return None, None
        products, residual = (float(self._states[name]) for name in ITERATED)
        return int(products), residual

    def undo(self, overlong: bool = True) -> None:
        """Return to the parameters before the last update, if that is the suspect; ``overlong``: λ rises."""
        if self._count.unconfirmed and self._first_order:
            self._first_order.undo()
        elif self._count.unconfirmed:
            self._run("restore", *(("reject",) if overlong else ()))
            self._count.since_refresh = self._settings.refresh_every
        self._count.rejected += int(self._count.unconfirmed)
        self._count.unconfirmed = False

    def _nothing_learned(self) -> StepStats:
        """No update, and all else holds (``guards.py``): the timetable goes on with the next step.

        One that runs ahead of the host cannot tell it in time, and counts.
        """
        self._count.updates, self._count.held = self._count.updates + 1, self._count.held + 1
        losses = self._number("loss"), self._number("objective")
        sizes = 0.0, 0.0 if self._settings.momentum else None, 0.0
        return StepStats(
            self._count.updates,
            *losses,
            self._compiled.damping,
            *sizes,
            rejected=self._count.rejected,
        )

    def _refused(self) -> StepStats:
        """No update; the next step refreshes the inverses."""
        self._count.since_refresh = self._settings.refresh_every
        self._count.rejected += 1
        self._count.updates += 1
        loss, objective = self._number("loss"), self._number("objective")
        return StepStats(
            self._count.updates,
            loss,
            objective,
            self._compiled.damping,
            rejected=self._count.rejected,
        )
