"""Our side: compiled programs on a device, replayed as graphs where they are on a GPU, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gncompile.base.settings import Settings
from gncompile.program.costs import Cost, CostModel
from gncompile.program.launches import schedule
from gncompile.program.phases import mean_runs
from gncompile.program.schedule import Kernel
from gncompile.program.step_program import StepProgram
from gncompile.program.timetable import cycle, settled
from gncompile.runtime.graphs import Graphs
from gncompile.training.trainer import Trainer

from ..compiled import Compiled
from ..contestants import trainer
from ..problems import Problem
from .clock import Call, Clock
from .rows import Prepared

STEADY = {"layer_steps": 0}
"""What holds after the first steps: one step size for all layers together."""


@dataclass(frozen=True)
class Engine:
    """How gncompile runs: backend and precision."""

    backend: str
    precision: str

    def phases(self, problem: Problem, method: str, *names: str) -> Prepared:
        """:func:`phases` of a problem's step."""
        ours = Compiled.of(problem, method, self.backend, precision=self.precision)
        return phases(ours, problem.batch, *names)

    def step(self, problem: Problem, clock: Clock, **options: Any) -> Prepared:
        """:func:`step` on a problem."""
        ours = self.trainer(problem, **options)
        return step(ours, lambda: ours.step(*problem.pair()), problem.batch, clock)

    def trainer(self, problem: Problem, **options: Any) -> Trainer:
        """A trainer on a copy of the problem's model."""
        return trainer(problem, backend=self.backend, precision=self.precision, **options)


def phases(ours: Compiled, batch: int, *names: str) -> Prepared:
    """Phases on the whole batch, without loading it: what is timed is the device's work."""
    ours.executable.load(ours.inputs, ours.target)
    graphs, costs = Graphs(ours.executable), phase_costs(ours.program, batch)
    total = sum((costs[name] for name in names if name in costs), Cost())
    return Prepared(lambda: graphs.run(names), total.flops, total.bytes)


def step(ours: Trainer, call: Call, batch: int, clock: Clock) -> Prepared:
    """``Trainer.step``, which ``call`` makes, over whole cycles of refreshes and damping choices."""
    settings = ours.settings
    if not settings.second_order:
        return Prepared(call)
    steps = cycle(settings)
    # On a GPU every sequence of phases has to be met twice before it is a graph.
    warm_up = settled(settings) + (3 * steps if clock.is_cuda else 0)
    cost = step_cost(ours.program, settings, batch)
    return Prepared(call, cost.flops, cost.bytes, steps, warm_up)


def kernel_cost(kernel: Kernel, costs: CostModel) -> Cost:
    """Flops of all it computes; bytes of what it reads and stores only."""
    flops = sum(costs.of(i).flops for i in kernel.instructions)
    touched = (*kernel.inputs, *kernel.stores)
    moved = sum(costs.elements(costs.program[name].spec) for name in touched)
    return Cost(flops, moved * costs.itemsize)


def phase_costs(
    program: StepProgram, batch: int, rows: Mapping[str, int] | None = None
) -> dict[str, Cost]:
    """The cost of every phase once: traffic between launches, what a launch keeps to itself not counted."""
    costs = CostModel(program, batch, rows=rows or {})
    return {
        phase: sum((kernel_cost(k, costs) for launch in launches for k in launch.kernels), Cost())
        for phase, launches in schedule(program).phases.items()
    }


def step_cost(program: StepProgram, settings: Settings, batch: int) -> Cost:
    """A mean step of a trainer."""
    costs = phase_costs(program, batch, settings.rows(batch))
    share = {
        name: times for name, times in mean_runs(settings, program.step).items() if name in costs
    }
    flops = sum(costs[name].flops * times for name, times in share.items())
    moved = sum(costs[name].bytes * times for name, times in share.items())
    return Cost(round(flops), round(moved))
