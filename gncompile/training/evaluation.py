"""The loss of a whole data set, which comes in one pair of tensors or in batches of any sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BatchError, DataError
from ..losses.rows import as_parts, divisor_sums, divisors
from ..runtime.processes import Processes
from .batches import Returned, Target, as_returned, input_tensors, part_of, samples_of
from .compiled import Compiled
from .loaders import Pair

SAMPLES = 1000
"""Samples that are evaluated together."""
See = Callable[[Returned, Target], None]
"""Is shown outputs of some samples, as the model returns them, and their targets."""


@dataclass(frozen=True)
class Whole:
    """What has to be known of a data set before a part's share in its loss is."""

    samples: int
    divisors: Tensor | None
    """Means over samples of what weighted means divide by, if the loss has any."""


class Evaluation:
    """Losses ``(1/N) Σ_n E_n`` of whole data sets, each part weighed by its share of the samples.

    What a loss divides by, the samples or the sum of their weights, is that of the whole set: so the loss
    does not depend on how it comes in batches. ``shown`` gives the model the parameters that are meant.
    """

    def __init__(
        self, compiled: Compiled, shown: Callable[[bool | None], AbstractContextManager[None]]
    ) -> None:
        self._compiled, self._shown, self._executable = compiled, shown, compiled.executable

    def whole(self, batches: Iterable[Pair]) -> Whole:
        """Go through a data set once, and look at its targets only."""
        loss, outputs = self._compiled.loss, self._compiled.traced.graph.output.size
        divides, samples, sums = bool(divisors(loss, outputs)), 0, list[Tensor]()
        for x, y in batches:
            sizes = [*map(len, input_tensors(x)), samples_of(y)]
            if len(set(sizes)) > 1 or not sizes[0]:
                raise BatchError(
                    f"{' and '.join(map(str, sizes[:-1]))} inputs, and {sizes[-1]} targets",
                    where="evaluate",
                    instead="pass one row a sample in each, and one sample at least",
                )
            samples += sizes[0]
            for rows in parts(sizes[0], SAMPLES) if divides else ():
                part = part_of(y, rows)
                sums.append(
                    divisor_sums(
                        loss, outputs, self._compiled.reader.target(samples_of(part), part)
                    )
                )
        if not samples:
            raise DataError("the validation data has no batches", where="evaluate")
        return Whole(samples, torch.stack(sums).sum(dim=0) / samples if divides else None)

    def loss(
        self,
        batches: Iterable[Pair],
        whole: Whole,
        batch_size: int = SAMPLES,
        averaged: bool | None = None,
        see: See | None = None,
        processes: Processes | None = None,
    ) -> float:
        """The loss of the data set; raises :class:`~gncompile.errors.BatchError` for values not finite.

        ``averaged`` is as in :meth:`Trainer.evaluate`. Of several ``processes``, a collective call, each
        computes every so many parts of the same data. Their shares are added up in one order, so that the
        loss has the same bits whatever their number is.
        """
        samples, targets, own = 0, list[Target](), list[tuple[float, Returned | None]]()
        size, rank = (processes.size, processes.rank) if processes else (1, 0)
        count = 0
        with self._shown(averaged):
            for x, y in batches:
                given = input_tensors(x)
                samples += len(given[0])
                for rows in parts(len(given[0]), batch_size):
                    part = part_of(y, rows)
                    if see:
                        targets.append(part)
                    if count % size == rank:
                        own.append(
                            self._of_part(tuple(t[rows] for t in given), part, whole, bool(see))
                        )
                    count += 1
        every = processes.gathered(own) if processes else [own]
        total = 0.0
        for number in range(count):
            share, z = every[number % size][number // size]
            total += share
            if see:
                see(z, targets[number])
        if samples != whole.samples:
            raise DataError(
                f"the validation data has given {samples} samples, and {whole.samples} before",
                where="validation",
                instead="give a loader that goes through the same samples every time, in any order",
            )
        return total

    def _of_part(
        self, given: tuple[Tensor, ...], y: Target, whole: Whole, seen: bool
    ) -> tuple[float, Returned | None]:
        """What some samples contribute to the loss, and their outputs if they are to be ``seen``."""
        compiled, output = self._compiled, self._compiled.traced.graph.output
        inputs, target = compiled.reader.pair(given, y)
        compiled.reader.all_finite(inputs, target)
        share = len(target) / whole.samples
        target = as_parts(compiled.loss, output.size, target, whole.divisors)
        self._executable.load(inputs, target, whole=whole.samples)
        self._executable.run(*compiled.masks(drops=False), "predict", "evaluate")
        loss = float(self._executable.result("evaluated_loss")) * share
        z = self._executable.result("output").cpu().clone() if seen else None
        return loss, None if z is None else as_returned(output, z)


def parts(count: int, size: int = SAMPLES) -> Iterator[slice]:
    """Rows that are computed together."""
    return (slice(start, start + size) for start in range(0, count, size))
