"""A step on a batch that lies in shards: each has values of its own, and their sums do not depend on where.

Shard v of V has the samples v, v + V, … of the batch, in the order in which it is read. Process r of R
has the shards r, r + R, …. Sums go by halves: v and v + V/2 first, so that a process adds up its own shards
before it sends one bucket, and those of all processes are added in the same way::

    ((s₀ + s₄) + (s₂ + s₆)) + ((s₁ + s₅) + (s₃ + s₇))        whatever R is
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import CompileError
from ..program.shards import SHARDS, Segmented
from .memory import Memory
from .parts import Part
from .processes import Processes


def shards_here(processes: Processes | None, backend: str, device: torch.device) -> int:
    """How many of the shards of a deterministic step this process has.

    Raises :class:`~gncompile.errors.CompileError` where results would depend on the number of processes.
    """
    size = processes.size if processes else 1
    if SHARDS % size:
        raise CompileError(
            f"deterministic=True on {size} processes, and batches lie in {SHARDS} shards",
            instead="use 1, 2, 4 or 8 processes, or leave deterministic out",
        )
    if backend == "triton" or device.type != "cpu":
        raise CompileError(
            f"deterministic=True with the backend {backend!r} on {device}",
            instead="use backend='torch' on a CPU: on GPUs the sums within a kernel have no fixed order",
        )
    return SHARDS // size


def halved(rows: Tensor) -> Tensor:
    """The sum of ``rows [n, size]``, n a power of 2, each half of them added to the other."""
    while len(rows) > 1:
        first, second = rows.chunk(2)
        rows = first + second
    return rows[0]


class Sums:
    """Adds up the buckets of a process's shards, and then those of all processes."""

    def __init__(self, memory: Memory, shards: int) -> None:
        self._memory, self._shards = memory, shards
        self._buckets: list[Tensor] = []

    def clear(self) -> None:
        """Forget what has come so far."""
        self._buckets.clear()

    def add(self, bucket: Tensor) -> None:
        """One of them; with the last shard's all are added up into the first's."""
        self._buckets.append(bucket)
        if len(self._buckets) < self._shards:
            return
        own, processes = halved(torch.stack(self._buckets)), self._memory.joined
        if processes is not None:
            every = own.new_empty(processes.size, len(own))
            processes.all_gather(every.view(-1), own)
            own = halved(every)
        self._buckets[0].copy_(own)
        self.clear()


class Step(Protocol):
    """A step that is bound to a batch."""

    column_start: int

    @property
    def dims(self) -> Mapping[str, int]:
        """The dimensions it is bound to."""

    def load(
        self, inputs: tuple[Tensor, ...], target: Tensor | None, rows: Tensor | None = None
    ) -> None:
        """Take the batch, or these rows of it."""

    def run(self, phase: str) -> None:
        """Execute one phase."""

    def value(self, name: str) -> Tensor:
        """A value that was computed."""


class ShardedStep:
    """Runs phases on shards: same interface as a step on one batch."""

    def __init__(
        self,
        of: Segmented,
        memory: Memory,
        dims: Sequence[Mapping[str, int]],
        bind: Callable[[Memory, Mapping[str, int], Step | None], Step],
    ) -> None:
        """``bind(memory, dims, first)`` is the step on a shard of these dimensions."""
        self._of, self._memory, self._sums = of, memory, Sums(memory, len(dims))
        self._shards = [memory.shard(of.whole, of.states, self._sums.add) for _ in dims]
        self._steps = list[Step]()
        for shard, each in zip(self._shards, dims, strict=True):
            self._steps.append(bind(shard, each, self._steps[0] if self._steps else None))
        self.dims = dims[0]
        self.column_start = 0

    def take(self, parts: Sequence[Part]) -> None:
        """Say which samples are whose."""
        for shard, part in zip(self._shards, parts, strict=True):
            shard.part = part

    def load(
        self, inputs: tuple[Tensor, ...], target: Tensor | None, rows: Tensor | None = None
    ) -> None:
        """Deal the samples, or these rows of them; where there are too few the first stands in."""
        rows = torch.arange(len(inputs[0]), device=inputs[0].device) if rows is None else rows
        for number, step in enumerate(self._steps):
            own = rows[number :: len(self._steps)]
            step.load(inputs, target, own if len(own) else rows[:1])

    def run(self, phase: str) -> None:
        """Execute one phase, segment by segment."""
        for segment in self._of.segments[phase]:
            steps = self._steps if segment in self._of.apart else self._steps[:1]
            draws, before = self._memory.draws, dict[str, Tensor]()
            if segment in self._of.drawing and len(steps) > 1:
                before = {key: state.clone() for key, state in draws.state_dict().items()}
            self._sums.clear()
            for number, step in enumerate(steps):
                if number and before:  # all draw the same, of which each takes its samples'
                    draws.load_state_dict(before)
                step.column_start = self.column_start
                step.run(segment)

    def value(self, name: str) -> Tensor:
        """The value of the whole batch; of a part of it the first shard's."""
        return self._steps[0].value(name)
