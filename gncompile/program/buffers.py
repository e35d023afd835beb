"""Which values share a work buffer: those of one shape that are read in one phase only, and never meet."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from . import convolutions as grids
from . import operations as ir
from .operations import Leaf
from .schedule import Schedule
from .specs import Dim
from .step_program import Instruction, StepProgram

Steps = Sequence[Sequence[Instruction]]
"""The instructions of a phase in the order they run; those of one step run at the same time."""

Pool = dict[tuple[tuple[Dim, ...], bool], list[str]]
"""Buffers by shape, and by whether they are packed."""


def plan_buffers(
    program: StepProgram, order: Schedule | None = None, without: Collection[str] = ()
) -> dict[str, str]:
    """For every value with memory of its own the name of its buffer: its own, or an earlier value's.

    A buffer passes on after the last use of its value, and to the next phase at a phase's end. Values that
    another phase reads, results, and what is kept in a state or parameter are never moved, for phases run in
    any number and order. ``order`` gives the launches to follow instead of the program's own order; what
    stays inside a kernel needs no buffer, nor do the values ``without``. Without an order, a convolution's
    result that never leaves its phase, nor is viewed, has none either: torch's kernel brings memory of its
    own, to copy that costs a pass over it, and an emitted step gives it up after the last use::

        r1 = x V      r1
        r2 = f(r1)    r2
        r3 = r2 W     r1     r1 is dead, and r3 has its shape
    """
    home = program.storage
    stored = None if order is None else order.stores
    reach = (i.name for i in program if _has_buffer(i) and (not stored or i.name in stored))
    plan = {name: name for name in reach if name not in without}
    local = _phase_local(program, home) & set(plan)
    if order is None:
        for name in _brought(program, local):
            local.remove(name)
            del plan[name]
    pool: Pool = {}
    for phase in program.phases:
        if order is None:
            steps: Steps = [[i] for i in program.phase(phase)]
        else:
            steps = [[i for k in x.kernels for i in k.instructions] for x in order.phases[phase]]
        _share(program, steps, local, home, plan, pool)
    return plan


def _has_buffer(i: Instruction) -> bool:
    return i.into is None and not isinstance(i.op, (Leaf, *ir.VIEWS))


def _phase_local(program: StepProgram, home: dict[str, str]) -> set[str]:
    """Values with a buffer that are read, also through views, in the phase that defines them only."""
    local = {i.name: i.phase for i in program if _has_buffer(i)}
    for name in program.results.values():
        local.pop(home[name], None)
    for i in program:
        for name in i.inputs if not isinstance(i.op, ir.VIEWS) else ():
            if local.get(home[name], i.phase) != i.phase:
                del local[home[name]]
    return set(local)


def _brought(program: StepProgram, local: set[str]) -> list[str]:
    """Those of the phase's own values that are computed into memory of their own."""
    fresh = [n for n in local if isinstance(program[n].op, grids.Convolve | grids.ConvolveAdjoint)]
    return [n for n in fresh if not any(isinstance(r.op, ir.VIEWS) for r in program.readers[n])]


def _share(
    program: StepProgram,
    steps: Steps,
    local: set[str],
    home: dict[str, str],
    plan: dict[str, str],
    pool: Pool,
) -> None:
    """Share the buffers of one phase; ``pool`` has those that the phases before it leave free."""
    last = {
        home[name]: number
        for number, step in enumerate(steps)
        for i in step
        if not isinstance(i.op, ir.VIEWS)
        for name in (*i.inputs, i.name)
    }
    free = {of: list(names) for of, names in pool.items()}

    def kind(name: str) -> tuple[tuple[Dim, ...], bool]:
        return program[name].spec.shape, name in program.packed

    for number, step in enumerate(steps):
        for i in step:
            if i.name not in local:
                continue
            if waiting := free.get(kind(i.name)):
                plan[i.name] = waiting.pop()
            else:
                pool.setdefault(kind(i.name), []).append(i.name)
        # Only now: what a step reads must stay while the step writes.
        for name in dict.fromkeys(home[n] for i in step for n in (*i.inputs, i.name)):
            if name in local and last[name] == number:
                free.setdefault(kind(name), []).append(plan[name])
