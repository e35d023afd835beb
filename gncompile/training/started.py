"""Steps of a fit that were started and not yet read, and the records that come of them."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Protocol

from .ahead import DeferredStats
from .batches import Target
from .joining import Joining
from .loaders import Rows
from .records import Record, StepStats

STEPS_AHEAD = 64
"""Steps started on a device before statistics are read, all together."""
SECONDS_AHEAD = 0.5
"""Seconds after which they are read all the same, so that progress is seen to move."""


class Steps(Protocol):
    """What takes steps."""

    joining: Joining

    def step(self, x: Rows, y: Target) -> StepStats | DeferredStats:
        """Take one step."""


class Started:
    """Steps started and not yet read: on a device reading one waits for it, and the next starts late."""

    def __init__(self, trainer: Steps) -> None:
        self._trainer = trainer
        self._steps: list[tuple[StepStats | DeferredStats, int, int]] = []
        self._begun = 0.0

    def step(self, x: Rows, y: Target, epoch: int) -> None:
        """Start one more step, of this epoch."""
        begun = time.perf_counter()
        stats = self._trainer.step(x, y)
        if not self._steps:
            self._begun = begun
        self._steps.append((stats, epoch, self._trainer.joining.samples))

    @property
    def should_be_read(self) -> bool:
        """Whether reading does not wait, or was put off for long enough."""
        return (
            isinstance(self._steps[-1][0], StepStats)
            or len(self) >= STEPS_AHEAD
            or time.perf_counter() - self._begun >= SECONDS_AHEAD
        )

    def read(self) -> list[Record]:
        """Wait for all of them; their records in order, each with the speed of all."""
        stats = [each.resolved() for each, _, _ in self._steps]
        seconds = time.perf_counter() - self._begun
        rate = sum(samples for _, _, samples in self._steps) / seconds
        records = [
            Record(**asdict(each), epoch=epoch, samples=samples, samples_per_second=rate)
            for each, (_, epoch, samples) in zip(stats, self._steps, strict=True)
        ]
        self._steps = []
        return records

    def __len__(self) -> int:
        return len(self._steps)
