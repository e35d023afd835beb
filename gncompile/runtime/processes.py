"""The processes that train one model together: what they send each other, over ``torch.distributed``.

Everything is a collective call: all processes of the group make it, in the same order. Tensors go through the
group's own backend, numbers of the host through gloo, for which no device has to wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ProcessesError

T = TypeVar("T")
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The later of its names."""


class Processes:
    """The group, and this process's place in it.

    Attributes:
        rank, size: this process's number, from 0, and how many there are.
        sent_bytes, messages: what this process has handed over to :meth:`all_reduce` and :meth:`all_gather`
            so far.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent_bytes = self.messages = 0
        self._host = group
        if "gloo" not in dist.get_backend(group):
            ranks = dist.get_process_group_ranks(group)
            self._host = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and tells of progress."""
        return self.rank == 0

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Around a collective call: :class:`~gncompile.errors.ProcessesError` where the others are lost.

        torch has a RuntimeError for it, at once where a process has ended, else after the group's timeout.
        """
        try:
            yield
        except RuntimeError as error:
            raise ProcessesError(
                f"the other processes cannot be reached: {str(error).strip().splitlines()[0]}",
                where=f"process {self.rank} of {self.size}",
                instead="one of them has ended or hangs: its own message tells why, torchrun names the "
                "first that failed",
            ) from error

    def all_reduce(self, bucket: Tensor) -> None:
        """Add up a vector of every process, in place; all have the same sums to the bit."""
        with self.reached():
            dist.all_reduce(bucket, group=self.group)
        self._count(bucket)

    def all_gather(self, whole: Tensor, own: Tensor) -> None:
        """Put the vectors of all processes, of equal length, one after another; ``own`` may be its place."""
        with self.reached():
            _all_gather(whole, own, group=self.group)
        self._count(own)

    def broadcast(self, tensor: Tensor, rank: int) -> None:
        """Fill a contiguous tensor on all with that of process ``rank``."""
        with self.reached():
            dist.broadcast(tensor, dist.get_global_rank(self.group, rank), group=self.group)

    def _count(self, handed_over: Tensor) -> None:
        self.sent_bytes += handed_over.numel() * handed_over.element_size()
        self.messages += 1

    def numbers(self, own: Sequence[int]) -> list[list[int]]:
        """As many whole numbers of every process, by rank."""
        mine = torch.tensor(own, dtype=torch.long)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        with self.reached():
            dist.all_gather(every, mine, group=self._host)
        return [each.tolist() for each in every]

    def total(self, number: int) -> int:
        """The sum of every process's number."""
        return sum(each for (each,) in self.numbers([number]))

    def any(self, flag: bool) -> bool:
        """Whether it is true for any process."""
        return bool(self.total(int(flag)))

    def gathered(self, own: T) -> list[T]:
        """An object of every process, by rank; it has to be picklable."""
        every: list[T] = [own] * self.size
        with self.reached():
            dist.all_gather_object(every, own, group=self._host)
        return every


def current(group: object = None) -> Processes | None:
    """The processes of a group, of the default one for None; None for False, for one process, or without any.

    ``torch.distributed`` has to be initialised before.
    """
    if group is False or not (dist.is_available() and dist.is_initialized()):
        return None
    chosen = dist.group.WORLD if group is None or group is True else group
    assert isinstance(chosen, dist.ProcessGroup)
    return Processes(chosen) if dist.get_world_size(chosen) > 1 else None
