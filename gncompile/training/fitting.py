"""One fit of a trainer: its steps, and what happens between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from ..base.tables import count
from ..errors import BatchError, ShortDataWarning, warn
from .batches import Target
from .callbacks import Callbacks
from .fit import Fit
from .gather import Gathering, Gathers
from .loaders import Pair, Rows, length_of
from .loggers import Loggers
from .metrics import resolve_metrics
from .own_parts import OwnParts, is_distributed, require_undivided
from .place import Place
from .progress import display
from .records import History, Record
from .reported import Reported
from .started import Started, Steps
from .validation import Schedule, Validates, Validation, total_of

BAD_BATCHES = 100
"""Bad batches in a row that end a fit where the length of an epoch is unknown."""


class Trains(Gathers, Steps, Validates, Protocol):
    """What a fit knows of a trainer."""

    place: Place
    reported: Reported
    history: History

    def settle(self, x: Rows, y: Target) -> None:
        """Undo the last update if the loss of ``(x, y)`` is not finite after it."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint."""

    def finish(self) -> None:
        """Leave in the model what is reported."""


class Fitting:
    """What :class:`~gncompile.training.fit.Fit` asks of a trainer, done.

    The history is the trainer's from the start, and tells every step that was made, however the fit ends.
    """

    def __init__(self, asked: Fit, trainer: Trains) -> None:
        asked.check()
        self._asked, self._trainer = asked, trainer
        leads = trainer.compiled.leads
        self._shows = asked.progress and leads
        self._callbacks = Callbacks(asked.callbacks)
        self._loggers = Loggers(asked.loggers if leads else ())
        metrics = resolve_metrics(asked.metrics, trainer.compiled.loss)
        self._higher = asked.higher(metrics)
        self._history = History(monitor=asked.monitor, higher_is_better=self._higher)
        self._started, self._processes = Started(trainer), trainer.compiled.executable.processes
        self._deals, self._may_stop, train = False, True, asked.train
        if self._processes is not None:
            self._deals = not is_distributed(train) if asked.split is None else asked.split
            train = train if self._deals else OwnParts(train, self._processes)
            require_undivided(asked.validation)
            self._may_stop = asked.agreed(self._processes)
        self._train = train
        most = length_of(train) or BAD_BATCHES
        self._refused = Refusals(self._history, asked.skip_bad_batches, most)
        self._gathering = Gathering(trainer, train, asked.epochs, self._refused, asked.batch)
        self._validation = (
            None
            if asked.validation is None
            else Validation(trainer, asked.validation, metrics, asked.batch)
        )

    def run(self) -> History:
        """Take the steps; returns their records."""
        asked, trainer, history = self._asked, self._trainer, self._history
        with ExitStack() as stack:
            log = stack.enter_context(self._loggers.opened(trainer.updates))
            trainer.place.begin(asked.train, asked.continue_order, asked.monitor, asked.keeps)
            total = total_of(self._train, asked.updates, asked.epochs)
            show = stack.enter_context(display(self._shows, total, history))
            stack.enter_context(trainer.joining.dealing(self._deals))

            def tell(record: Record, number: int) -> None:
                show(record, self._gathering.taken if asked.epochs else number)
                log(record)
                self._callbacks(record)

            trainer.history = history
            try:
                finished = self._steps(total, tell)
                self._read(tell)
            except BaseException as error:
                # After a bad batch the next fit goes on behind it.
                bad = isinstance(error, BatchError)
                (trainer.place.taken if bad else trainer.place.go_back)()
                self._report_best()
                history.ended = f"{type(error).__name__}: {error}".removesuffix(": ")
                history.records += self._started.read()
                raise
            if not history.stopped_early:
                history.ended = self._end(finished)
        if asked.stop and trainer.place.best.waited >= asked.stop.patience:
            trainer.place.wait_anew()  # who resumes what early stopping ended wants more
        self._report_best()
        if asked.checkpoint:
            trainer.save(asked.checkpoint)
        trainer.finish()
        return history

    def _report_best(self) -> None:
        """Until the next step."""
        if self._asked.keeps:
            self._trainer.reported.choose(self._trainer.place.best.parameters)

    def _steps(self, total: int | None, tell: Callable[[Record, int], None]) -> bool:
        """Take them, until the last one or the end of the data; whether it was the last one."""
        asked, trainer, history = self._asked, self._trainer, self._history
        schedule = Schedule(trainer, self._gathering, self._train, asked.validate_every)
        for batch in self._begun():
            taken = self._gathering.taken if asked.epochs else len(history) + len(self._started)
            last, due = taken == total, schedule.due()
            validates = self._validation is not None and (last or due)
            if last or validates or self._callbacks or self._started.should_be_read:
                self._read(tell, batch if last else None, validates)
            if reason := self._reason():
                history.ended, history.stopped_early = reason, True
                if not last:
                    trainer.settle(*batch)
                return True
            if last:
                return True
            # After the callbacks, so that what they wrote is never behind the checkpoint.
            if asked.checkpoint and trainer.updates % asked.checkpoint_every == 0:
                trainer.save(asked.checkpoint)
        return False

    def _begun(self) -> Iterator[Pair]:
        """Start a step on each batch that has been gathered, and yield it."""
        for x, y in self._gathering:
            try:
                self._started.step(x, y, self._gathering.epoch)
            except BatchError as error:
                self._refused(error)
                continue
            self._refused.in_a_row = 0
            yield x, y

    def _read(
        self,
        tell: Callable[[Record, int], None],
        last: Pair | None = None,
        validates: bool = False,
    ) -> None:
        """Read and tell what was started; settle the ``last`` batch's step, and validate, before."""
        records = self._history.records
        told = len(records)
        records += self._started.read()
        self._history.joined = self._gathering.joined
        if last is not None:
            self._trainer.settle(*last)
        if validates:
            self._validate()
        for number, record in enumerate(records[told:], start=told + 1):
            tell(record, number)

    def _validate(self) -> None:
        assert self._validation is not None
        asked, records, trainer = self._asked, self._history.records, self._trainer
        loss, values = self._validation()
        if self._processes is not None:  # all have computed the same, but perhaps for a rounding
            loss, values = self._processes.gathered((loss, values))[0]
        records[-1] = replace(records[-1], validation_loss=loss, metrics=values)
        value = records[-1].value(asked.monitor)
        assert value is not None
        place, stop = trainer.place, asked.stop
        place.best = place.best.after(
            value,
            self._higher,
            stop.min_delta if stop else 0.0,
            trainer.reported.now if asked.keeps else dict,
        )

    def _reason(self) -> str:
        """Why the fit is to end early, if it is: for all processes if for one."""
        own, processes = self._own_reason(), self._processes
        if processes is None or not self._may_stop or not processes.any(bool(own)):
            return own
        return next(filter(None, processes.gathered(own)))

    def _own_reason(self) -> str:
        stop = self._asked.stop
        if self._callbacks.reason or not stop or self._trainer.place.best.waited < stop.patience:
            return self._callbacks.reason
        return f"no better {stop.monitor.replace('_', ' ')} in {stop.patience} validations"

    def _end(self, finished: bool) -> str:
        """Why the fit has ended otherwise; a warning where the data was not enough."""
        updates, epochs, gathering = self._asked.updates, self._asked.epochs, self._gathering
        if epochs is not None and (finished or gathering.passes >= epochs):
            return f"{count(epochs, 'epoch')} made"
        if finished:
            return f"{count(updates or 0, 'update')} made"
        asked = f"{updates} updates" if epochs is None else f"{epochs} epochs"
        made = count(len(self._history), "update")
        found = f"the data ended after {made} of the {asked} asked for"
        warn(
            ShortDataWarning,
            f"{found}, with {count(gathering.taken, 'batch', 'es')}",
            instead="pass something that can be gone through again: a Batches, a DataLoader, a list; a "
            "generator only once",
        )
        return found


@dataclass
class Refusals:
    """Counts bad batches in a history; raises if they are not to be skipped, or at too many in a row."""

    history: History
    skip: bool
    most: int
    in_a_row: int = 0

    def __call__(self, error: BatchError) -> None:
        self.in_a_row += 1
        if not self.skip or self.in_a_row >= self.most:
            raise error
        self.history.skipped += 1
