"""Steps as transactions on the user's model, by whichever of the two ways the program is made for."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

from pydantic import Field

from ..base.options import checked
from ..errors import GncompileError
from ..runtime.parts import ALL
from .ahead import AheadOfHost, DeferredStats
from .compiled import Compiled
from .counters import Counters
from .first_order import FirstOrder
from .joining import Batch
from .order import reading_order
from .place import Place
from .records import StepStats
from .reported import Reported
from .state import State
from .steps import LookedAfter
from .transaction import Journal
from .unison import require_unison


class Stepping:
    """What changes a model and a trainer's state: whole steps, or nothing."""

    def __init__(self, compiled: Compiled, count: Counters, place: Place) -> None:
        executable, settings = compiled.executable, compiled.settings
        self._compiled, self._executable, self._count, self._place = (
            compiled, executable, count, place,
        )  # fmt: skip
        first_order = None if settings.second_order else FirstOrder(settings, compiled.trained())
        self._first_order = first_order
        self.reported = Reported(executable, ahead=settings.guarded)
        self.state = State(compiled, count, place, self.reported, first_order)
        state, noted = self.state, self.reported.note
        self.journal = Journal(executable, state.numbers, state.restore, noted)
        self.reported.surely = self.journal.surely
        before = self.journal.before
        self._ahead = AheadOfHost(executable, settings, before) if settings.guarded else None
        self.looked_after = LookedAfter(compiled, count, self.journal, self.reported, first_order)

    @property
    def rejected(self) -> int:
        """Updates undone or refused so far."""
        if self._ahead:
            return int(self._executable.memory.states["refused"])
        return self._count.rejected

    def step(self, batch: Batch) -> StepStats | DeferredStats:
        """One step on a batch, whole or not at all."""
        self.reported.hide()
        if not self._ahead and batch.part is ALL:
            # Before anything runs: tanh(inf) is 1, so a finite loss proves nothing about the batch.
            self._compiled.reader.all_finite(batch.inputs, batch.target)
        require_unison(self._compiled, self._count.updates)
        stats = self.journal.whole(partial(self._step, batch))
        self.reported.choose({})
        return stats

    def _step(self, batch: Batch) -> StepStats | DeferredStats:
        """One step; the position in the data is a part of it."""
        memory, settings = self._executable.memory, self._compiled.settings
        count, seed, rows = self._count, memory.draws.seed, batch.rows
        if batch.part is ALL:
            rows = reading_order(settings, batch.samples, count.updates, seed, memory.device)
        self._executable.load(batch.inputs, batch.target, rows=rows, part=batch.part)
        stats: StepStats | DeferredStats
        if self._ahead:
            drops = self._compiled.identity.drops
            stats, now = self._ahead.step(count.updates, count.since_refresh, drops)
            count.refreshed(now)
            count.updates += 1
        else:
            stats = self.looked_after.step(batch.inputs, batch.target)
        self._place.taken()
        return stats

    def ready(self) -> None:
        """See :meth:`Trainer.ready`."""
        self.journal.recover()
        traced = self._compiled.identity.changes()
        if traced is not None:
            self._compiled.traced = traced
            self._executable.rebind(traced)
            self.journal.rebound()
            if self._first_order:
                self._first_order.rebind(self._compiled.trained())
            if self._ahead:
                self._ahead.keep_parameters()
            self._count.unconfirmed = False  # what is unconfirmed were others
        self.reported.look()

    def set_damping(self, value: object) -> None:
        """See :attr:`Trainer.damping`; ``γ ← γ √(λ'/λ)``, and the next step inverts anew."""
        settings, before = self._compiled.settings, self._compiled.damping
        if before is None:
            raise GncompileError(
                f"method={settings.method!r} has no damping",
                instead="its step size is learning_rate; damping is a second-order method's",
            )
        low, high = settings.damping_bounds
        bounded = Annotated[float, Field(ge=low, le=high)]
        damping = checked("damping", value, bounded, f"a number from {low:g} to {high:g}")
        states = self._executable.memory.states
        gamma = float(states["factor_damping"]) * math.sqrt(damping / before)

        def write() -> None:
            states["damping"].fill_(damping)
            states["factor_damping"].fill_(gamma)
            self._count.since_refresh = settings.refresh_every

        self.journal.surely(write)

    @property
    def unconfirmed(self) -> bool:
        """Whether the last update has not been seen to give a finite loss; a refused step makes none."""
        if self._ahead:
            return bool(self._executable.memory.states["unconfirmed"])
        return self._count.unconfirmed

    def is_sound(self, batch: Batch) -> bool:
        """Whether the loss of the batch is finite at the parameters that the model holds, without dropout."""
        self._executable.load(batch.inputs, batch.target, part=batch.part)
        self._executable.run(*self._compiled.masks(drops=False), "predict", "evaluate")
        return math.isfinite(float(self._executable.result("evaluated_loss")))

    def undo(self) -> None:
        """Take back the last update, as the next step would where it finds that the loss is not finite."""
        phases = ("gradient", "guard", "guard_step")
        run = partial(self.journal.run, *phases)
        self.journal.whole(run if self._ahead else self.looked_after.undo)
