"""What a fit is asked for, ``Trainer.fit``; :mod:`~gncompile.training.fitting` does it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..data.data_sets import Batches
from ..errors import GncompileError, ProcessesError, is_whole, nearest, require_whole
from ..runtime.processes import Processes
from .callbacks import Callback
from .early_stop import VALIDATION_LOSS, EarlyStop
from .loaders import ReadBatch, require_batches
from .metrics import Metric


@dataclass(frozen=True)
class Fit:
    """What a fit is asked for: the arguments of :meth:`Trainer.fit`, checked when it runs.

    A fit that is interrupted, by Ctrl-C or whatever a callback raises, raises that, so that nothing goes on
    as though it were trained. Nothing is lost by it: ``trainer.history`` has the records so far and, as
    ``ended``, the reason; loggers are flushed; the trainer is as after its last whole step, and a
    ``Batches`` where that step took it. ``save`` then stores a training that goes on bit for bit, and so does
    another ``fit``. The update of the last step is undone if the batch's loss is not finite after it, as the
    next step would do. At the end the model holds what is reported (:meth:`Trainer.finish`).
    """

    train: Batches | Iterable[object]
    """Gives batches of any sizes: a :class:`~gncompile.data.Batches`, a torch ``DataLoader``, or
    another iterable, started again where it ends; an epoch begun earlier counts as the first. A step is taken
    on several together where these are small, or where their gradients are mostly noise
    (:meth:`Trainer.gather`); the records tell its ``samples``. Where the data ends too early, as a generator
    does that can be gone through once, a :class:`~gncompile.errors.ShortDataWarning` says so;
    ``history.ended`` tells in any case why the fit ended.

    A batch is a pair ``(x, y)``; the inputs and then the target, ``(a, b, y)``; a dict whose entries that are
    named like the arguments of ``forward`` are the inputs and whose other entry is the target; or inputs
    alone, which an autoencoder has as targets too (:mod:`gncompile.training.loaders`)."""
    updates: int | None
    epochs: int | None
    validation: object
    """One batch that is the whole set, ``(x, y)`` say, or what gives batches of it, a ``DataLoader`` or a
    list. The loss is that of the whole set at the reported parameters, as :meth:`Trainer.evaluate` computes
    it, whatever the batches' sizes; ``history.best`` tells the best record."""
    validate_every: int | None
    """Steps between validations (default: an epoch); there is one after the last step too."""
    callbacks: Callback | Sequence[Callback]
    """One or several, which get each step's :class:`~gncompile.training.records.Record`. One that returns
    True, or raises :class:`~gncompile.training.early_stop.StopTraining`, ends the fit there. They may raise
    anything else, and ``trainer.save`` in one stores this step and the position of the next batch. On a CUDA
    device they make the host wait for every step; without them it reads statistics, and shows progress, only
    now and then, and ``samples_per_second`` is that of the steps read together."""
    progress: bool
    checkpoint: str | os.PathLike[str] | None
    """A file written every ``checkpoint_every`` steps and at the end."""
    checkpoint_every: int
    early_stop: int | EarlyStop | None
    """Ends the fit after so many validations without a better loss; an
    :class:`~gncompile.training.early_stop.EarlyStop` says of what."""
    keep_best: bool | None
    """Whether the model at the end holds the parameters of its best validation (default: with early
    stopping), and ``evaluate``, ``predict`` and the checkpoint's ``model/…`` too; after an interrupt
    :meth:`Trainer.finish` gives them to the model. A step after that goes on from the latest. A fit that goes
    on from a checkpoint knows the best, and the waiting, before it. An ``EarlyStop`` says which value is
    best, a metric's say; else it is the lowest validation loss."""
    metrics: str | Metric | Sequence[object]
    """Of the validation data's predictions: ``"accuracy"``, ``"auc"``, ``"r2"``, ``"rmse"``, ``"mae"``
    (:mod:`gncompile.training.metrics`, by scikit-learn), or functions of all outputs and targets."""
    loggers: object
    """Get the numbers of every step: a :class:`~gncompile.training.loggers.CSVLogger`, torch's
    ``SummaryWriter``, Lightning's loggers, or objects with ``log(dict, step)``. One that raises is told once
    and does not end the fit."""
    skip_bad_batches: bool
    """A bad batch raises :class:`~gncompile.errors.BatchError` and changes nothing; or it is counted and left
    out, unless there is none but bad ones for an epoch. On a CUDA device batches with non-finite values are
    left out in any case, with a record in which ``rejected`` rises."""
    continue_order: bool
    """Whether after :meth:`Trainer.resume` a ``Batches`` goes on exactly where the checkpoint was written."""
    batch: ReadBatch | None
    """Reads what the loaders give where its form tells too little: ``batch=lambda b: (inputs, targets)``."""

    split: bool | None = None
    """Of several processes: whether ``train`` gives all of them the same batches, of which each takes its
    rows, or each its own samples. By default the former, unless it is a loader with a
    ``DistributedSampler``."""

    @property
    def stop(self) -> EarlyStop | None:
        """Early stopping, if it is asked for."""
        return EarlyStop(self.early_stop) if isinstance(self.early_stop, int) else self.early_stop

    @property
    def monitor(self) -> str:
        """The value that tells which validation is the best."""
        return self.stop.monitor if self.stop else VALIDATION_LOSS

    @property
    def keeps(self) -> bool:
        """Whether the parameters of the best validation are kept."""
        return self.stop is not None if self.keep_best is None else self.keep_best

    def higher(self, metrics: Sequence[Metric]) -> bool:
        """Whether more of the monitored value is better; an error where this is not known."""
        if self.monitor == VALIDATION_LOSS:
            return False
        known = {metric.name: metric.higher_is_better for metric in metrics}
        if self.monitor not in known:
            names = [VALIDATION_LOSS, *known]
            raise GncompileError(
                f"early_stop monitors {self.monitor!r}. {nearest(self.monitor, names)}".rstrip(),
                instead=f"monitor one of {', '.join(names)}, or add it: fit(..., metrics=[{self.monitor!r}])",
            )
        higher = known[self.monitor]
        if higher is None:
            raise GncompileError(
                f"early_stop monitors {self.monitor!r}, of which it is not known whether more is better",
                instead=f"give gncompile.Metric({self.monitor!r}, function, higher_is_better=True), or False",
            )
        return higher

    def agreed(self, processes: Processes) -> bool:
        """Whether callbacks or early stopping may end the fit, on any of the processes, which are asked.

        Raises :class:`~gncompile.errors.ProcessesError` where they are to take other steps, or do not all
        validate.
        """
        stops = bool(self.callbacks or self.early_stop)
        steps = [self.updates, self.epochs, self.validate_every]
        told = processes.numbers(
            [stops, self.validation is not None, *(number or 0 for number in steps)]
        )
        if any(numbers[1:] != told[0][1:] for numbers in told):
            raise ProcessesError(
                "fit was given other updates, epochs or validation on some processes than on others",
                where=f"fit, on {processes.size} processes",
                instead="give the same on all, validation data too: only callbacks, loggers and checkpoint "
                "may be one process's",
            )
        return any(stops for stops, *_ in told)

    def check(self) -> None:
        """Raise :class:`~gncompile.errors.GncompileError` for what no fit can do."""
        length = self.epochs if self.updates is None else self.updates
        if (self.updates is None) == (self.epochs is None) or not is_whole(length):
            found = f"updates={self.updates!r}, epochs={self.epochs!r}"
            raise GncompileError(
                f"fit was given {found}", instead="give one of them, a number from 1"
            )
        require_batches(self.train)
        whole = isinstance(self.early_stop, EarlyStop | None) or is_whole(self.early_stop)
        if not whole:
            raise GncompileError(
                f"early_stop={self.early_stop!r}",
                instead="give a number of validations from 1, or gncompile.EarlyStop(patience, monitor)",
            )
        asked = {
            "early_stop": self.early_stop,
            "keep_best": self.keep_best,
            "metrics": self.metrics,
        }
        for name, value in asked.items():
            if value and self.validation is None:
                raise GncompileError(
                    f"{name}={value!r} with validation=None",
                    instead="give validation=(x, y), or a loader, which it looks at",
                )
        for name in ("validate_every", "checkpoint_every"):
            if (every := getattr(self, name)) is not None:
                require_whole(name, every)
