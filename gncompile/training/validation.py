"""The validation data of a fit: the loss and metrics of a whole data set, and when they are due."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from ..data.data_sets import Batches
from ..errors import BatchError
from .batches import Target
from .compiled import Compiled
from .evaluation import Evaluation
from .gather import Gathering
from .loaders import Pair, PairOf, ReadBatch, Rows, data_set, length_of
from .metrics import Collected, Metric

EVERY = 20
"""Steps between validations where the length of an epoch is unknown."""


class Validates(Protocol):
    """What a validation asks of a trainer."""

    compiled: Compiled
    evaluation: Evaluation

    @property
    def updates(self) -> int:
        """Steps taken so far."""

    def ready(self) -> None:
        """Follow the model; raise if it is another one."""

    def check_batch(self, x: Rows, y: Target) -> None:
        """Raise :class:`~gncompile.errors.BatchError` if no step can be taken on ``(x, y)``."""


class Validation:
    """A validation set that was given as one batch, a tuple say, or as something that gives batches.

    All of it is looked at once before the training, so that what does not fit is told then.
    """

    def __init__(
        self,
        trainer: Validates,
        data: object,
        metrics: Sequence[Metric],
        batch: ReadBatch | None = None,
    ) -> None:
        self._trainer, self._metrics = trainer, metrics
        self._pair = PairOf(trainer.compiled.reader, batch)
        self._data: Iterable[object] = data_set(data, "validation")
        try:
            self._whole = trainer.evaluation.whole(self._checked())
        except BatchError as error:
            raise BatchError(f"validation: {error}") from error

    def __call__(self) -> tuple[float, dict[str, float]]:
        """The loss at the reported parameters, and the metrics by name."""
        self._trainer.ready()
        collected = Collected()
        see = collected.see if self._metrics else None
        processes = self._trainer.compiled.executable.processes
        loss = self._trainer.evaluation.loss(
            self._pairs(), self._whole, see=see, processes=processes
        )
        return loss, collected.values(self._metrics) if self._metrics else {}

    def _pairs(self) -> Iterator[Pair]:
        return map(self._pair, self._data)

    def _checked(self) -> Iterator[Pair]:
        for x, y in self._pairs():
            self._trainer.check_batch(x, y)
            yield x, y


class Schedule:
    """Says after each step whether a validation is due: every so many steps, or where an epoch has ended."""

    def __init__(
        self, trainer: Validates, gathering: Gathering, train: object, every: int | None
    ) -> None:
        self._trainer = trainer
        self._gathering = gathering
        self._length = length_of(train) if every is None else None
        self._every = every or EVERY
        self._begun = train.position if isinstance(train, Batches) else 0
        self._epochs = 0

    def due(self) -> bool:
        """Whether one is due after the step that was taken last."""
        if self._length is None:
            return self._trainer.updates % self._every == 0
        before, self._epochs = self._epochs, (self._begun + self._gathering.taken) // self._length
        return self._epochs > before


def total_of(train: object, updates: int | None, epochs: int | None) -> int | None:
    """Batches to come, where that is known."""
    length = length_of(train)
    if epochs is None or length is None:
        return updates
    return epochs * length - (train.position if isinstance(train, Batches) else 0)
