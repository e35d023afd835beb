"""One training under a budget of seconds or of updates."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from ...data.data_sets import Batches
from ...errors import CompileError, GncompileError
from .optimisers import Optimiser, Setting, Steps
from .store import Point, Run, Status
from .task import Pair, Task

POINTS = 60
"""Evaluations in a run besides the first, the k-th ``(k / POINTS)²`` through the budget."""
Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` counts what this process computed: one thread's results compare even on a busy machine."""


@dataclass(frozen=True)
class Budget:
    """``amount`` seconds, or updates, of training; evaluations and compilation are not counted."""

    amount: float
    unit: Literal["s", "u"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``"60s"``, ``"2m"``, or ``"100u"`` for updates; else :class:`~gncompile.errors.CompileError`."""
        found = re.fullmatch(r"(\d+(?:\.\d*)?)([smu])", text)
        amount = float(found[1]) * (60 if found[2] == "m" else 1) if found else 0.0
        unit: Literal["s", "u"] = "u" if found and found[2] == "u" else "s"
        if amount <= 0 or (unit == "u" and amount % 1):
            raise CompileError(
                f"{text!r} is no budget", instead="write 60s, 2m, or 100u for 100 updates"
            )
        return cls(amount, unit)

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"

    def progress(self, seconds: float, updates: int) -> float:
        """The share that is spent."""
        return (seconds if self.unit == "s" else updates) / self.amount


def run(
    task: Task,
    optimiser: Optimiser,
    setting: Setting,
    seed: int,
    budget: Budget,
    clock: Clock = "wall",
    points: int = POINTS,
) -> Run:
    """Train from the weights and in the order of ``seed`` until the budget is spent.

    A run ends early, as ``diverged``, when a loss it reports is not finite or a step raises, as the
    factorisation of a matrix that overflowed does; it is ``failed`` when the optimiser cannot be started on
    the task. The error's first line is kept as a note.
    """
    now = CLOCKS[clock]
    began = now()
    made = Run(task.name, optimiser.name, setting, seed, str(budget), "done")
    model = task.build(seed)
    try:
        steps = optimiser.start(task, model, seed, setting)
    except GncompileError as error:
        return replace(made, status="failed", note=_first_line(error))
    setup = now() - began
    marks = iter([(k / points) ** 2 for k in range(1, points)] + [1.0])
    measurements, note = _train(task, model, steps, seed, budget, now, marks)
    ended_well = measurements[-1].finite and not note
    status: Status = "done" if ended_well else "diverged"
    return replace(made, status=status, note=note, setup=setup, points=tuple(measurements))


def _train(
    task: Task,
    model: nn.Module,
    steps: Steps,
    seed: int,
    budget: Budget,
    now: Callable[[], float],
    marks: Iterator[float],
) -> tuple[list[Point], str]:
    """The points of a run, and what ended it before its budget was spent, if anything was raised."""
    points = [measured(task, model, 0, 0.0)]
    mark, spent, updates, seconds = next(marks), 0.0, 0, 0.0
    batches = steps.batches(_batches(task, seed))
    while spent < 1 and points[-1].finite:
        start = now()
        x, y = next(batches)
        try:
            made = steps.step(x, y, spent)
        except (RuntimeError, GncompileError) as error:
            return points, _first_line(error)
        seconds += now() - start
        updates += made
        # An optimiser that can go no further has spent its budget, in whatever unit.
        spent = budget.progress(seconds, updates) if made else 1.0
        if spent >= mark:
            steps.settle(x, y)
            points.append(measured(task, model, updates, seconds))
            mark = next((each for each in marks if each > spent), 1.0)
    return points, ""


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def measured(task: Task, model: nn.Module, updates: int, seconds: float) -> Point:
    """The losses at this moment."""
    return Point(updates, seconds, *(_number(loss) for loss in task.losses(model)))


def _number(loss: float) -> float:
    """A NaN as infinity, so that losses can be ordered."""
    return loss if math.isfinite(loss) else math.inf


def _batches(task: Task, seed: int) -> Iterable[Pair]:
    """The batches of one pass through the data, each time it is iterated."""
    data = task.data
    if task.full_batch:
        return [(data.train_x, data.train_y)]
    return Batches(data.train_x, data.train_y, task.batch_size, seed)
