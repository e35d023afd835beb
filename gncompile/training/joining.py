"""One batch of what many processes have of it, so that all of them take the same step.

A process has its own samples, or all have the same batch and each takes its rows of it (``deals``). Either
way the samples have places in one order, and are read as one process would read the joined batch, own samples
in the order of ranks. A process without samples takes part with a row that counts nothing.

Whether a step is taken at all is decided together: where one process refuses its part, all refuse the batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import BatchError, ProcessesError
from ..losses.targets import tensors_of
from ..runtime.parts import ALL, Part
from ..runtime.processes import Processes
from .batches import Target, input_tensors, part_of, samples_of
from .compiled import Compiled
from .counters import Counters
from .order import reading_order
from .unison import require_none_failed

Inputs = Tensor | tuple[Tensor, ...]

MARKED = 8
"""Elements of each row that are compared, where all processes are to have the same batch."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step is taken on: flat ``inputs`` and ``target`` rows, this process's part of ``samples``.

    ``rows`` is the order they are read in, if not as they are.
    """

    inputs: tuple[Tensor, ...]
    target: Tensor
    samples: int
    rows: Tensor | None = None
    part: Part = ALL


class Joining:
    """Reads batches for the steps of one trainer."""

    def __init__(self, compiled: Compiled, count: Counters) -> None:
        self._compiled, self._count = compiled, count
        self._processes = compiled.executable.processes
        self._latest = compiled.reader.stand_in()
        self.deals = compiled.executable.shards > 0
        """Whether all processes are given the same batch, of which each takes its rows."""
        self.samples = 0
        """Those of the latest batch, of all processes together."""

    @contextmanager
    def dealing(self, deals: bool) -> Iterator[None]:
        """Within this block all processes are given the same batches, or each its own samples."""
        saved, self.deals = self.deals, deals
        try:
            yield
        finally:
            self.deals = saved

    def read(self, x: Inputs, y: Target) -> Batch:
        """The batch of ``(x, y)``; where there are several processes a collective call.

        Raises :class:`~gncompile.errors.BatchError` where it does not fit the model, on all processes.
        """
        if self._processes is None:
            batch = self._alone(x, y)
        else:
            batch = (self._dealt if self.deals else self._joined)(self._processes, x, y)
        self.samples = batch.samples
        return batch

    def _alone(self, x: Inputs, y: Target) -> Batch:
        inputs, target = self._compiled.reader.pair(x, y)
        count = len(target)
        if not self._compiled.executable.shards:
            return Batch(inputs, target, count)
        if not self._compiled.settings.guarded:
            self._compiled.reader.all_finite(inputs, target)
        whole, order = self._whole(count)
        rows = order.to(target.device)
        return Batch(inputs, target, count, rows, Part(whole, torch.arange(count)))

    def _whole(self, count: int) -> tuple[Mapping[str, int], Tensor]:
        """The dimensions of a joined batch, and its samples in the order in which they are read."""
        settings, seed = self._compiled.settings, self._compiled.executable.memory.draws.seed
        rows = settings.rows(count)
        order = reading_order(settings, count, self._count.updates, seed, torch.device("cpu"))
        return {"N": count, **rows}, torch.arange(count) if order is None else order

    def _dealt(self, processes: Processes, x: Inputs, y: Target) -> Batch:
        """This process's rows of a batch that all have: every so many in the order in which it is read.

        So each has as many samples of every share as the others, up to one.
        """

        def read() -> tuple[list[int], Batch]:
            count, given = samples_of(y), input_tensors(x)
            if not count or any(len(each) != count for each in given):
                self._compiled.reader.pair(x, y)  # tells what is wrong
            whole, order = self._whole(count)
            part = Part(whole, torch.arange(processes.rank, count, processes.size))
            rows = order[part.places].to(given[0].device)
            own = self._own(tuple(each[rows] for each in given), part_of(y, rows))
            return [count, *_marks(given[0], tensors_of(y)[0])], Batch(*own, count, None, part)

        batch, told = self._agreed(processes, read, 3)
        if any(marks != told[0] for marks in told):
            raise ProcessesError(
                f"the processes were given different batches at update {self._count.updates + 1}",
                where="batches of which every process takes its rows",
                instead="let every process go through the same data in the same order (a DataLoader that "
                "shuffles takes generator=torch.Generator().manual_seed(0)); or give each its own samples, "
                "by a DistributedSampler or fit(..., split=False)",
            )
        return batch

    def _joined(self, processes: Processes, x: Inputs, y: Target) -> Batch:
        """The samples of all processes, in the order of ranks."""
        if self._compiled.executable.shards:
            raise ProcessesError(
                "deterministic=True, and every process has samples of its own",
                where=f"a step on {processes.size} processes",
                instead="give all of them the same batches, of which each takes its rows: a loader without a "
                "DistributedSampler, fit(..., split=True)",
            )

        def read() -> tuple[list[int], Batch]:
            count = len(input_tensors(x)[0])
            return [count], Batch(*self._own(x, y), count)

        batch, told = self._agreed(processes, read, 1)
        counts = [count for (count,) in told]
        if not sum(counts):
            raise BatchError("no process has a sample", instead="pass one row a sample")
        whole, order = self._whole(sum(counts))
        first, count = sum(counts[: processes.rank]), counts[processes.rank]
        places = ((order >= first) & (order < first + count)).nonzero().flatten()
        rows = (order[places] - first).to(batch.target.device) if count else None
        return replace(batch, samples=sum(counts), rows=rows, part=Part(whole, places))

    def _own(self, x: Inputs, y: Target) -> tuple[tuple[Tensor, ...], Tensor]:
        """Samples as a program reads them, checked; for none the latest there was, which counts nothing."""
        reader = self._compiled.reader
        if not len(input_tensors(x)[0]):
            return self._latest
        inputs, target = reader.pair(x, y)
        if not self._compiled.settings.guarded:  # else the program leaves a bad batch out
            reader.all_finite(inputs, target)
        self._latest = tuple(each[:1].clone() for each in inputs), target[:1].clone()
        return inputs, target

    @staticmethod
    def _agreed(
        processes: Processes, read: Callable[[], tuple[list[int], Batch]], width: int
    ) -> tuple[Batch, list[list[int]]]:
        """The batch that ``read`` gives here, and the numbers that it gives on all processes.

        Where it raises :class:`~gncompile.errors.BatchError` on one, all raise it; for any other exception
        the others raise :class:`~gncompile.errors.ProcessesError`.
        """
        error: Exception | None = None
        found, numbers = None, [0] * width
        try:
            numbers, found = read()
        except Exception as raised:  # the others wait for it
            error = raised
        failed = error is not None and not isinstance(error, BatchError)
        told = processes.numbers([failed, found is None, *numbers])
        if failed:
            assert error is not None
            raise error
        require_none_failed(processes, [others for others, *_ in told])
        if any(refused for _, refused, *_ in told):
            texts = processes.gathered(str(error or ""))
            if error is not None:
                raise error
            rank, text = next((rank, text) for rank, text in enumerate(texts) if text)
            raise BatchError(f"process {rank} of {processes.size} has refused its samples\n{text}")
        assert found is not None
        return found, [numbers for _, _, *numbers in told]


def _marks(*tensors: Tensor) -> list[int]:
    """A number for each tensor, of some of its elements: other ones for other batches.

    Nothing is looked at of what lies on a device, where that would wait.
    """
    found = []
    for tensor in tensors:
        if tensor.device.type != "cpu":
            found.append(0)
            continue
        rows = tensor.detach().reshape(len(tensor), -1)
        few = rows[:, :: -(-rows.shape[1] // MARKED)].cpu().contiguous()
        found.append(zlib.crc32(few.view(torch.uint8).numpy().data))
    return found
