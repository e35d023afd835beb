"""Batches put together, until a step is taken on as many samples as the trainer wants.

Curvature and step sizes of a few samples fit these samples only, and late in a training most of a batch's
gradient is noise. So a step is taken on ``gather_samples`` at least, and on more where the noise's share of
the gradient exceeds ``gather_noise`` (:mod:`gncompile.derivation.noise`).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..data.data_sets import Batches
from ..errors import BatchError, DataError
from ..losses.targets import mapped, tensors_of
from ..program.timetable import MEASURED
from .batches import Target, input_tensors, joined_targets, samples_of
from .compiled import Compiled
from .counters import Counters
from .loaders import Pair, PairOf, ReadBatch, Rows, require_batches
from .own_parts import NONE, OwnParts, no_samples
from .reported import version


class Gathers(Protocol):
    """What a trainer is asked where batches are put together for it."""

    compiled: Compiled
    gathers: bool

    @property
    def samples_wanted(self) -> int:
        """The samples that the next step should be taken on."""

    def check_batch(self, x: Rows, y: Target) -> None:
        """Raise :class:`~gncompile.errors.BatchError` if no step can be taken on ``(x, y)``."""


class Wanted:
    """The samples that the next step should be taken on, as far as the last measurement of noise tells."""

    def __init__(self, compiled: Compiled, count: Counters) -> None:
        self._compiled, self._count = compiled, count
        self.forget()

    def forget(self) -> None:
        """Look at the state again, after a load."""
        self._known = 0, 0  # measurements so far, and the samples wanted since the last one

    @property
    def now(self) -> int:
        """At least ``gather_samples``, at most what the memory budget takes; 1 for first-order baselines."""
        settings = self._compiled.settings
        if not settings.second_order:
            return 1
        measured = (self._count.updates - self._count.held - 1 + MEASURED // 2) // MEASURED
        if measured != self._known[0]:  # on a device reading the state waits for the last step
            state = self._compiled.executable.memory.states.get("samples_wanted")
            self._known = measured, 0 if state is None else int(state)
        least, wanted = settings.gather_samples, self._known[1]
        return least if wanted <= least else max(least, min(wanted, self._most))

    @cached_property
    def _most(self) -> int:
        """The samples whose work buffers fit into the memory budget."""
        return self._compiled.executable.samples_within(self._compiled.settings.memory_budget)


class Gathering:
    """The batches of ``train`` put together for a trainer, and how far this has come.

    ``batch`` reads what ``train`` gives (:mod:`~gncompile.training.loaders`). ``refused`` is told of bad
    batches, which are left out; it may raise.
    """

    def __init__(
        self,
        trainer: Gathers,
        train: Iterable[object],
        epochs: int | None,
        refused: Callable[[BatchError], None] | None = None,
        batch: ReadBatch | None = None,
    ) -> None:
        require_batches(train)
        trainer.gathers = True
        self._pair = PairOf(trainer.compiled.reader, batch)
        self._trainer = trainer
        self._train = train
        self._epochs = epochs
        self._refused = refused or _raise
        self._parts: list[Pair] = []
        self._waiting = 0  # samples of these, of all processes
        self._last: Pair | None = None
        self._given: Written | None = None  # the latest batch, unless it was joined to others
        self.taken = 0
        """Batches of ``train`` taken so far."""
        self.passes = 0
        """Whole passes over ``train`` so far."""
        self.joined = 0
        """How often several batches were given as one."""
        self.epoch = 0
        """The pass that the latest batch is of, from 0; a :class:`~gncompile.data.Batches` counts its own."""

    def __iter__(self) -> Iterator[Pair]:
        for _ in range(self._epochs) if self._epochs is not None else itertools.count():
            whole = not (isinstance(self._train, Batches) and self._train.position)
            before = self.taken
            self.epoch = self._train.epoch if isinstance(self._train, Batches) else self.passes
            for batch in self._train:
                self.taken += 1
                if self._adds(*self._read(batch)):
                    whole = False
                    yield self._joined()
            if self.taken == before:
                if not before:
                    raise DataError("the training data has no batches")
                break
            self.passes += 1
            if whole and self._parts:
                yield self._joined()
        if self._parts:
            intact = self._last is not None and self._as_joined.intact
            if isinstance(self._train, OwnParts):
                intact = self._train.all(intact)
            self._parts[:0] = [self._last] if self._last and intact else []
            yield self._joined()

    def _read(self, batch: object) -> Pair:
        if batch is NONE:
            return no_samples(node.shape for node in self._trainer.compiled.reader.nodes)
        return self._pair(batch)

    def _has_none(self, y: Target) -> bool:
        """Whether this process has no samples of a batch of several processes."""
        return isinstance(self._train, OwnParts) and not samples_of(y)

    def _adds(self, x: Rows, y: Target) -> bool:
        """Keep one more batch, and whether a step is due; the same one again, a full batch, adds nothing."""
        before, self._given = self._given, Written.of(x, y)
        again = before is not None and self._given.is_still(before)
        wanted, error = self._trainer.samples_wanted, None
        try:
            small = self._parts or samples_of(y) < wanted  # a bad batch would spoil the others
            if small and not again and not self._has_none(y):
                self._trainer.check_batch(x, y)
        except BatchError as refused:
            error = refused
        if isinstance(self._train, OwnParts):
            count, again, error = self._train.agreed(samples_of(y), again, error)
        else:
            count = samples_of(y)
        if again and self._parts:
            return True
        if error is not None:
            self._refused(error)
            return False
        self._waiting += count
        due = again or self._waiting >= wanted
        # What waits for others may be overwritten by whoever gave it.
        self._parts.append((x, y) if due else _copied(x, y))
        return due

    def _joined(self) -> Pair:
        """The batches kept, as one."""
        if len(self._parts) > 1:
            self._given = None
            self.joined += 1
        self._last, self._parts, self._waiting = _joined(self._parts), [], 0
        self._as_joined = Written.of(*self._last)
        return self._last


@dataclass(frozen=True)
class Written:
    """The tensors of a batch, and how often each had been written: loaders may fill the same ones again."""

    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, x: Rows, y: Target) -> Written:
        """A batch as it is now; what is none of tensors is refused where it is read."""
        given = (*input_tensors(x), *tensors_of(y))
        tensors = tuple(each for each in given if isinstance(each, Tensor))
        return cls(tensors, tuple(map(version, tensors)))

    @property
    def intact(self) -> bool:
        """Whether nothing has been written since."""
        return self.versions == tuple(map(version, self.tensors))

    def is_still(self, before: Written) -> bool:
        """Whether it is the very batch of before."""
        same = len(self.tensors) == len(before.tensors) and self.versions == before.versions
        return same and all(map(operator.is_, self.tensors, before.tensors))


def _raise(error: BatchError) -> None:
    raise error


def _copied(x: Rows, y: Target) -> Pair:
    """A batch in memory of its own; inputs that are their own targets stay so."""
    own = mapped(lambda each: each.detach().clone(), y)
    if isinstance(x, Tensor):
        return own if x is y else x.detach().clone(), own
    return tuple(part.detach().clone() for part in x), own


def _joined(parts: list[Pair]) -> Pair:
    """One batch; inputs that are their own targets stay so."""
    parts = [(x, y) for x, y in parts if samples_of(y)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    y = joined_targets([y for _, y in parts])
    if all(x is y for x, y in parts):
        return y, y
    if isinstance(parts[0][0], Tensor):
        return torch.cat([x for x, _ in parts]), y  # type: ignore[misc]
    return tuple(torch.cat(each) for each in zip(*(x for x, _ in parts), strict=True)), y
