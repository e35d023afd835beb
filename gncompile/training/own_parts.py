"""A loader of which every process has its own part: gone through together, to the end of the longest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..errors import BatchError, GncompileError
from ..runtime.processes import Processes
from .loaders import length_of
from .unison import require_none_failed

NONE = object()
"""What a process gives whose part has ended before others'."""


def is_distributed(loader: object) -> bool:
    """Whether a loader gives every process samples of its own, by a ``DistributedSampler``."""
    from torch.utils.data import DistributedSampler

    samplers = [loader]
    for name in ("batch_sampler", "sampler"):
        samplers += [getattr(each, name, None) for each in samplers]
    return any(isinstance(each, DistributedSampler) for each in samplers)


class OwnParts:
    """This process's part of the batches, with :data:`NONE` where others have one more."""

    def __init__(self, train: Iterable[object], processes: Processes) -> None:
        self._train, self._processes = train, processes
        every = processes.gathered(length_of(train))
        known = [length for length in every if length is not None]
        self._length = max(known) if len(known) == len(every) else None

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("the length of a part is unknown")
        return self._length

    def __iter__(self) -> Iterator[object]:
        batches = iter(self._train)
        while True:
            batch, error = NONE, None
            try:
                batch = next(batches, NONE)
            except Exception as raised:  # the others wait for it
                error = raised
            told = self._processes.numbers([batch is not NONE, error is not None])
            if error is not None:
                raise error
            require_none_failed(self._processes, [failed for _, failed in told])
            if not any(more for more, _ in told):
                return
            yield batch

    def agreed(
        self, count: int, again: bool, error: BatchError | None
    ) -> tuple[int, bool, BatchError | None]:
        """The samples of all parts, whether all are those of before, and an error if one has any."""
        told = self._processes.numbers([count, again, error is not None])
        bad = next((rank for rank, (_, _, refused) in enumerate(told) if refused), None)
        if bad is not None and error is None:
            error = BatchError(f"process {bad} of {self._processes.size} has refused its samples")
        return sum(each for each, _, _ in told), all(same for _, same, _ in told), error

    def all(self, flag: bool) -> bool:
        """Whether it is true for all processes."""
        return not self._processes.any(not flag)


def no_samples(shapes: Iterable[tuple[int, ...]]) -> Any:
    """A pair ``(x, y)`` without samples, x of these shapes."""
    inputs = tuple(torch.empty(0, *shape) for shape in shapes)
    return inputs[0] if len(inputs) == 1 else inputs, torch.empty(0)


def require_undivided(data: object) -> None:
    """Raise :class:`~gncompile.errors.GncompileError` for validation data in parts."""
    if is_distributed(data):
        raise GncompileError(
            "the validation data has a DistributedSampler, which repeats samples to make the parts even",
            instead="give the validation loader no sampler: the processes share the work of it anyway, and "
            "every sample counts once",
        )
