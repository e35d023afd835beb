"""What a step costs on many processes: a model of it, fitted to runs on this machine, checked, and then used.

``python -m benchmarks.scaling local`` measures, in CPU seconds, one process at two batch sizes and sums over
two processes. From these the model

    T(R) = fixed + F(N/R) / rate + Σ over messages (α + β · bytes)

tells the step of 2, 3 and 4 processes, which are then measured. ``python -m benchmarks.scaling far`` prints
what it tells for GPUs, with published rates in place of fitted ones (:data:`H200`). FLOPs, bytes and
messages are those of :class:`~gncompile.program.costs.CostModel`, of the program of the first process.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import typer
from torch import multiprocessing

import gncompile
from gncompile.app.api import understand
from gncompile.base.settings import Settings
from gncompile.base.tables import table
from gncompile.explain.readback import Readback
from gncompile.graph.model_graph import TracedModel
from gncompile.losses.vocabulary import Loss
from gncompile.pipeline import step_program
from gncompile.program import operations as ir
from gncompile.program.collectives import MESSAGES, AllGather
from gncompile.program.ownership import own_work
from gncompile.program.reductions import for_processes
from gncompile.program.step_program import StepProgram

from .problems import WIDTHS, autoencoder

STEPS = 10
"""A cycle of the timetable: what is not due in every step is so once in ten."""
SIZES = (1 << 10, 1 << 17, 1 << 20)
"""Numbers that are summed for α and β."""
INVERSES = (ir.DampedInverse, ir.Eigen)


@dataclass(frozen=True)
class Work:
    """A mean step of a network on a joined batch, as the compiled program of a process tells it.

    With ``shared`` work on matrices has owners (``program/ownership.py``), without it all processes do it.
    """

    name: str
    widths: tuple[int, ...]
    method: str = "kfra"
    shared: bool = True
    factors: str = "replicated"

    @cached_property
    def _parts(self) -> tuple[TracedModel, Loss, Settings, StepProgram]:
        settings = Settings.from_options(method=self.method, factors=self.factors)
        model = autoencoder(self.widths)
        traced, loss, _ = understand(model, "bce_with_logits", torch.zeros(2, self.widths[0]))
        return traced, loss, settings, for_processes(step_program(traced.graph, loss, settings))

    @cached_property
    def _read(self) -> dict[int, Readback]:
        return {}

    def read(self, batch: int, size: int = 1) -> Readback:
        """The costs of the first of ``size`` processes, for so many samples of its own."""
        if size not in self._read:
            traced, loss, settings, program = self._parts
            if self.shared and size > 1:
                program = own_work(program, 0, size, by_rows=True)
            self._read[size] = Readback(traced, loss, settings, program, max(batch, 1))
        return replace(self._read[size], batch=max(batch, 1))

    def flops(self, batch: int, size: int = 1) -> tuple[float, float]:
        """Of a mean step on ``batch`` samples of its own: of all but inverses, and of inverses."""
        read, found = self.read(batch, size), [0.0, 0.0]
        for phase, often in read.mean_runs.items():
            for i in read.program.phase(phase):
                flops = read.costs.of(i).flops * read.costs.runs(phase) * often
                found[isinstance(i.op, INVERSES)] += flops
        return found[0], found[1]

    def messages(self, size: int) -> list[tuple[float, int, bool]]:
        """How often a mean step sends each message, how many bytes, and whether it is a sum."""
        read, found = self.read(1, size), []
        for phase, often in read.mean_runs.items():
            for i in read.program.phase(phase):
                if isinstance(i.op, AllGather) and i.op.room:
                    found.append((often, i.op.room * read.itemsize, False))
                elif isinstance(i.op, MESSAGES):
                    found.append((often, read.costs.elements(i.spec) * read.itemsize, True))
        return found

    @cached_property
    def parameters(self) -> int:
        """Trained numbers."""
        return self.read(1).parameter_count


@dataclass(frozen=True)
class Machine:
    """Rates in FLOP/s, and what a message costs: ``latency(R)`` seconds, and ``per_byte`` for each byte that
    a process sends."""

    products: float
    inverses: float
    fixed: float
    latency: Callable[[int], float]
    per_byte: Callable[[int], float]

    def sends(self, work: Work, size: int) -> float:
        """Seconds of a step's messages, of which a ring sends ``2 (R − 1)/R`` times a sum, else ``R − 1``."""
        if size == 1:
            return 0.0
        seconds = 0.0
        for often, bytes_, summed in work.messages(size):
            ring = bytes_ * (size - 1) * (2 / size if summed else 1)
            seconds += often * (self.latency(size) + ring * self.per_byte(size))
        return seconds

    def step(self, work: Work, batch: int, size: int) -> float:
        """Seconds of a step on ``batch`` samples of all."""
        products, inverses = work.flops(math.ceil(batch / size), size)
        seconds = self.fixed + products / self.products + self.sends(work, size)
        return seconds + inverses / self.inverses


# --- Far: assumptions, all published --------------------------------------------------------------------


def _latency(size: int) -> float:
    """A tree: 10 µs to begin, and for each level 1 µs by NVLink, 4 µs by InfiniBand, there and back."""
    inside = math.ceil(math.log2(min(size, 8)))
    outside = math.ceil(math.log2(max(size / 8, 1)))
    return 10e-6 + 2 * (1e-6 * inside + 4e-6 * outside)


def _per_byte(size: int) -> float:
    """80 % of 450 GB/s by NVLink, of 400 GB/s a node."""
    return 1 / (0.8 * (450e9 if size <= 8 else 400e9))


H200 = Machine(0.6 * 67e12, 0.1 * 67e12, 1e-3, _latency, _per_byte)
"""60 % of 67 TFLOP/s (float32 without tensor cores) for products, 10 % for inverses, 1 ms of launches."""
FAR = {
    "MNIST autoencoder": (WIDTHS["mnist"], 8_000),
    "six layers of 4096": ((4096,) * 7, 65_536),
}
"""Widths, and the samples of a step."""
METHODS = ("kfra", "kfac", "adam")
GPUS = (1, 8, 64, 1000)


def far(networks: Mapping[str, tuple[tuple[int, ...], int]] = FAR) -> str:
    """A table for every network: the same batch on more and more GPUs, and as large a batch on each."""
    return "\n\n".join(_far(name, *network) for name, network in networks.items())


def _far(name: str, widths: tuple[int, ...], batch: int) -> str:
    works = {method: Work(name, widths, method) for method in METHODS}
    heads = (
        "method",
        "GPUs",
        "step, ms",
        "sending",
        "alike",
        "sharded",
        "efficiency",
        "grown",
        "half at",
    )
    rows = [[*heads]]
    for method, work in works.items():
        one = H200.step(work, batch, 1)
        alike = replace(work, shared=False)
        sharded = replace(work, factors="sharded") if method != "adam" else work
        for size in GPUS:
            steps = [H200.step(each, batch, size) for each in (work, alike, sharded)]
            seconds = steps[0], H200.sends(work, size), *steps[1:]
            grown = H200.step(work, batch * size, size)
            rows.append(
                [method, str(size), *(f"{1e3 * s:.3g}" for s in seconds),
                 f"{one / steps[0] / size:.0%}", f"{one / grown:.0%}", _half(work, batch)]
            )  # fmt: skip
    told = []
    for method, work in works.items():
        messages = work.messages(8)
        sent, many = sum(often * size for often, size, _ in messages), sum(m[0] for m in messages)
        told.append(f"{method} sends {sent / 2**20:.3g} MiB in {many:.3g} messages")
    head = f"{name}: {works['kfra'].parameters:,} parameters, {batch:,} samples a step"
    return f"{head}\na mean step on 8 GPUs: {'; '.join(told)}\n{table(rows, right=range(1, 9))}"


def _half(work: Work, batch: int) -> str:
    """The most GPUs, a power of two, that are used by half."""
    one, size = H200.step(work, batch, 1), 1
    while size < 4096 and one / H200.step(work, batch, 2 * size) / (2 * size) >= 0.5:
        size *= 2
    return str(size)


# --- Local: measured ------------------------------------------------------------------------------------


def _steps(work: Work, batch: int) -> float:
    """CPU seconds of a mean step of this process, its part of the batch."""
    torch.manual_seed(0)
    x = torch.rand(batch, work.widths[0])
    trainer = gncompile.compile(
        autoencoder(work.widths), "bce_with_logits", x[:1], work.method, tune="off"
    )
    trainer.joining.deals = True
    for _ in range(STEPS):
        trainer.step(x, x)
    begun = time.process_time()
    for _ in range(STEPS):
        trainer.step(x, x)
    return (time.process_time() - begun) / STEPS


def _sum(numbers: int) -> float:
    """CPU seconds of one sum over the processes."""
    vector, many = torch.zeros(numbers), 30
    dist.all_reduce(vector)
    begun = time.process_time()
    for _ in range(many):
        dist.all_reduce(vector)
    return (time.process_time() - begun) / many


def _process(rank: int, size: int, folder: str, work: Work, batch: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    found = [_sum(numbers) for numbers in SIZES] if not batch else [_steps(work, batch)]
    every: list[Any] = [None] * size
    dist.all_gather_object(every, found)
    if rank == 0:
        torch.save([sum(each) / size for each in zip(*every, strict=True)], f"{folder}/found")
    dist.barrier()
    dist.destroy_process_group()


def _together(size: int, work: Work, batch: int) -> list[float]:
    """Means over ``size`` processes of :func:`_steps`, or without a batch of :func:`_sum`."""
    with tempfile.TemporaryDirectory() as folder:
        # Without what the work has cached: programs hold functions, which do not travel.
        given = size, folder, replace(work), batch
        multiprocessing.spawn(_process, given, nprocs=size)  # type: ignore[attr-defined]
        found: list[float] = torch.load(Path(folder) / "found")
        return found


def local(work: Work, batch: int, sizes: Iterable[int] = (2, 3, 4)) -> str:
    """Fit, and tell what was predicted and measured for several processes of this machine."""
    torch.set_num_threads(1)
    small = batch // 4
    flops = [work.flops(n)[0] for n in (small, batch)]
    seconds = [_steps(work, n) for n in (small, batch)]
    rate = (flops[1] - flops[0]) / (seconds[1] - seconds[0])
    fixed = seconds[1] - flops[1] / rate
    first, *_, last = _together(2, work, 0)
    per_byte = (last - first) / (4 * (SIZES[-1] - SIZES[0]))
    alpha = max(first - 4 * SIZES[0] * per_byte, 0.0)
    machine = Machine(
        rate, math.inf, fixed, lambda size: alpha, lambda size: per_byte
    )  # fmt: skip
    rows = [["processes", "predicted", "measured", "measured / predicted"]]
    for size in sizes:
        told, (found,) = machine.step(work, batch, size), _together(size, work, batch)
        rows.append([str(size), f"{told:.3g} s", f"{found:.3g} s", f"{found / told:.2f}"])
    return (
        f"{work.name} autoencoder, {batch} samples a step; CPU seconds of one process: {seconds[1]:.3g}\n"
        f"fitted: {fixed:.3g} s whatever the batch (inverses are in it), {rate / 1e9:.3g} GFLOP/s, "
        f"α = {1e6 * alpha:.3g} µs, 1/β = {1e-9 / max(per_byte, 1e-15):.3g} GB/s\n"
        + table(rows, right=range(4))
    )


app = typer.Typer(add_completion=False, help=__doc__)


@app.command("far")
def print_far() -> None:
    """What the model tells for GPUs; nothing is measured."""
    print(far())


@app.command("local")
def print_local(batch: int = 400) -> None:
    """Fit the model to this machine, and check it."""
    print(local(Work("curves", WIDTHS["curves"]), batch))


if __name__ == "__main__":
    app()
