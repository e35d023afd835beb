"""``Trainer.fit``: many steps, with progress, validation, callbacks, checkpoints and early stopping."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from torch import Tensor

from ..data.data_sets import Batches
from ..errors import (
    BatchError,
    GncompileError,
    ShortDataWarning,
    is_whole,
    message,
    require_whole,
)
from .ahead import DeferredStats
from .batches import Target, samples_of
from .gather import Gathering, Gathers, Pair, Rows
from .place import Place
from .progress import display
from .records import History, Record, StepStats

Callback = Callable[[Record], object]

VALIDATE_EVERY = 20
"""Steps between validations where the length of an epoch is unknown."""
BAD_BATCHES = 100
"""Bad batches in a row that end a fit where the length of an epoch is unknown."""
STEPS_AHEAD = 64
"""Steps started on a device before statistics are read, all together."""
SECONDS_AHEAD = 0.5
"""Seconds after which they are read all the same, so that progress is seen to move."""


class Trains(Gathers, Protocol):
    """What a fit knows of a trainer."""

    place: Place

    @property
    def updates(self) -> int:
        """Steps taken so far."""

    def step(self, x: Rows, y: Target) -> StepStats | DeferredStats:
        """Take one step."""

    def settle(self, x: Rows, y: Target) -> None:
        """Undo the last update if the loss of ``(x, y)`` is not finite after it."""

    def evaluate(self, x: Rows, y: Target) -> float:
        """The loss of a whole data set."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint."""

    def finish(self) -> None:
        """Leave in the model what is reported."""


class Started:
    """Steps started and not yet read: on a device reading one waits for it, and the next starts late."""

    def __init__(self, trainer: Trains) -> None:
        self._trainer = trainer
        self._stats: list[StepStats | DeferredStats] = []
        self._samples: list[int] = []
        self._begun = 0.0

    def step(self, x: Tensor | tuple[Tensor, ...], y: Target) -> None:
        """Start one more step."""
        begun = time.perf_counter()
        stats = self._trainer.step(x, y)
        if not self._stats:
            self._begun = begun
        self._stats.append(stats)
        self._samples.append(samples_of(y))

    @property
    def should_be_read(self) -> bool:
        """Whether reading does not wait, or was put off for long enough."""
        return (
            isinstance(self._stats[-1], StepStats)
            or len(self) >= STEPS_AHEAD
            or time.perf_counter() - self._begun >= SECONDS_AHEAD
        )

    def read(self) -> list[Record]:
        """Wait for all of them; their records in order, each with the speed of all."""
        stats = [each.resolved() for each in self._stats]
        rate = sum(self._samples) / (time.perf_counter() - self._begun)
        records = [
            Record(**asdict(each), samples=samples, samples_per_second=rate)
            for each, samples in zip(stats, self._samples, strict=True)
        ]
        self._stats, self._samples = [], []
        return records

    def __len__(self) -> int:
        return len(self._stats)


@dataclass(frozen=True)
class Fit:
    """What a fit is asked for: the arguments of :meth:`Trainer.fit`, checked when it runs."""

    train: Batches | Iterable[Pair]
    """Gives batches ``(x, y)`` of any sizes: a :class:`~gncompile.data.Batches`, a torch ``DataLoader``, or
    another iterable, started again where it ends; an epoch begun earlier counts as the first. A step is taken
    on several together where these are small, or where their gradients are mostly noise
    (:meth:`Trainer.gather`); the records tell its ``samples``. Where the data ends too early, as a generator
    does that can be gone through once, a :class:`~gncompile.errors.ShortDataWarning` says so;
    ``history.ended`` tells in any case why the fit ended."""
    updates: int | None
    epochs: int | None
    validation: Pair | None
    """``(x, y)``, evaluated as :meth:`Trainer.evaluate` does it; ``history.best`` tells the best record."""
    validate_every: int | None
    """Steps between validations (default: an epoch); there is one after the last step too."""
    callbacks: Callback | Sequence[Callback]
    """One or several, which get each step's :class:`~gncompile.training.records.Record`. They may raise, and
    ``trainer.save`` in one stores this step and the position of the next batch. On a CUDA device they make
    the host wait for every step; without them it reads statistics, and shows progress, only now and then, and
    ``samples_per_second`` is that of the steps read together."""
    progress: bool
    checkpoint: str | os.PathLike[str] | None
    """A file written every ``checkpoint_every`` steps and at the end."""
    checkpoint_every: int
    early_stop: int | None
    """Validations without a better loss after which the fit ends."""
    skip_bad_batches: bool
    """A bad batch raises :class:`~gncompile.errors.BatchError` and changes nothing; or it is counted and left
    out, unless there is none but bad ones for an epoch. On a CUDA device batches with non-finite values are
    left out in any case, with a record in which ``rejected`` rises."""
    continue_order: bool
    """Whether after :meth:`Trainer.resume` a ``Batches`` goes on exactly where the checkpoint was written."""

    def run(self, trainer: Trains) -> History:
        """Take the steps; returns their records."""
        self._check(trainer)
        validation, early_stop, checkpoint = self.validation, self.early_stop, self.checkpoint
        listeners = _listeners(self.callbacks)
        trainer.place.begin(self.train, self.continue_order)
        total = _total(self.train, self.updates, self.epochs)
        history, started = History(), Started(trainer)
        refused = Refusals(history, self.skip_bad_batches, _length(self.train) or BAD_BATCHES)
        gathering = Gathering(trainer, self.train, self.epochs, refused)
        validation_due = Validations(trainer, gathering, self.train, self.validate_every)
        with display(self.progress, total, history) as show:

            def tell(records: Iterable[Record]) -> None:
                for record in records:
                    history.records.append(record)
                    show(record, gathering.taken if self.epochs else len(history))
                    for listener in listeners:
                        listener(record)

            last = False
            try:
                for batch in _steps(started, gathering, refused):
                    taken = gathering.taken if self.epochs else len(history) + len(started)
                    last, due = taken == total, validation_due()
                    validates = validation is not None and (last or due)
                    if last or validates or listeners or started.should_be_read:
                        records = started.read()
                        if last:
                            trainer.settle(*batch)
                        if validation is not None and validates:
                            loss = trainer.evaluate(*validation)
                            trainer.place.validated(loss)
                            records[-1] = replace(records[-1], validation_loss=loss)
                        tell(records)
                    if early_stop and trainer.place.waited >= early_stop:
                        history.stopped_early = last = True
                        history.ended = f"no better validation loss in {early_stop} validations"
                    # After the callbacks, so that what they wrote is never behind the checkpoint.
                    if checkpoint and not last and trainer.updates % self.checkpoint_every == 0:
                        trainer.save(checkpoint)
                    if last:
                        break
                tell(started.read())
            except BatchError:
                trainer.place.taken()  # the next fit goes on behind the bad batch
                raise
            except BaseException:
                trainer.place.go_back()
                raise
            if not history.stopped_early:
                history.ended = _end(gathering, history, self.updates, self.epochs, last)
        if checkpoint:
            trainer.save(checkpoint)
        trainer.finish()
        return history

    def _check(self, trainer: Trains) -> None:
        validation, early_stop = self.validation, self.early_stop
        length = self.epochs if self.updates is None else self.updates
        if (self.updates is None) == (self.epochs is None) or not is_whole(length):
            found = f"updates={self.updates}, epochs={self.epochs}"
            raise GncompileError(
                f"fit was given {found}", instead="give one of them, a number from 1"
            )
        if not isinstance(self.train, Iterable):
            raise GncompileError(
                f"the training data is of type {type(self.train).__name__}",
                instead="pass gncompile.data.Batches(x, y, batch_size), a DataLoader, or a list of pairs",
            )
        if early_stop is not None and (validation is None or not is_whole(early_stop)):
            raise GncompileError(
                f"early_stop={early_stop} with validation={'None' if validation is None else '(x, y)'}",
                instead="give early_stop from 1 and validation=(x, y), whose loss it watches",
            )
        if validation is not None:
            if not isinstance(validation, tuple | list) or len(validation) != 2:
                raise GncompileError(
                    f"validation is of type {type(validation).__name__}"
                    + (
                        f" and length {len(validation)}"
                        if isinstance(validation, tuple | list)
                        else ""
                    ),
                    instead="give one pair of tensors (x, y), the whole validation set",
                )
            try:
                trainer.check_batch(*validation)
            except BatchError as error:
                raise BatchError(f"validation: {error}") from error
        for name in ("validate_every", "checkpoint_every"):
            if (every := getattr(self, name)) is not None:
                require_whole(name, every)


def _end(
    gathering: Gathering,
    history: History,
    updates: int | None,
    epochs: int | None,
    last: bool,
) -> str:
    """Why a fit has ended, with its ``last`` step or without; a warning where that was not asked for."""
    if epochs is not None and (last or gathering.passes >= epochs):
        return f"{epochs} epochs made"
    if last:
        return f"{updates} updates made"
    asked = f"{updates} updates" if epochs is None else f"{epochs} epochs"
    found = f"the data ended after {len(history)} updates of the {asked} asked for"
    warnings.warn(
        message(
            found,
            where=f"the training data, after {gathering.taken} batches",
            instead="pass something that can be gone through again: a Batches, a DataLoader, a list; a "
            "generator only once",
        ),
        ShortDataWarning,
        stacklevel=4,
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


def _steps(started: Started, gathering: Gathering, refused: Refusals) -> Iterator[Pair]:
    """Start a step on each batch that has been gathered, and yield it."""
    for x, y in gathering:
        try:
            started.step(x, y)
        except BatchError as error:
            refused(error)
            continue
        refused.in_a_row = 0
        yield x, y


class Validations:
    """Says after each step whether a validation is due: every so many steps, or where an epoch has ended."""

    def __init__(
        self, trainer: Trains, gathering: Gathering, train: object, every: int | None
    ) -> None:
        self._trainer = trainer
        self._gathering = gathering
        self._length = _length(train) if every is None else None
        self._every = every or VALIDATE_EVERY
        self._begun = train.position if isinstance(train, Batches) else 0
        self._epochs = 0

    def __call__(self) -> bool:
        if self._length is None:
            return self._trainer.updates % self._every == 0
        before, self._epochs = self._epochs, (self._begun + self._gathering.taken) // self._length
        return self._epochs > before


def _length(train: object) -> int | None:
    """Batches in one epoch, where that is known; a loader of an iterable data set has no length."""
    try:
        return len(train)  # type: ignore[arg-type]
    except TypeError:
        return None


def _total(train: object, updates: int | None, epochs: int | None) -> int | None:
    """Batches to come, where that is known."""
    length = _length(train)
    if epochs is None or length is None:
        return updates
    return epochs * length - (train.position if isinstance(train, Batches) else 0)


def _listeners(callbacks: Callback | Sequence[Callback]) -> tuple[Callback, ...]:
    """One callback or several as a tuple."""
    listeners = (callbacks,) if callable(callbacks) else callbacks
    if not isinstance(listeners, tuple | list) or not all(map(callable, listeners)):
        raise GncompileError(
            f"callbacks is {callbacks!r}",
            instead="give a function of one Record, or a list of such functions",
        )
    return tuple(listeners)
