"""Work on matrices that all processes have, shared out: each inverts some and sends them to the others.

::

    Q_inverse ← DampedInverse(Q, c)        Q_inverse ← DampedInverse(Q, c)                 of process 0
    G_inverse ← DampedInverse(G, d)    →   gathered  = AllGather[0, …](Q_inverse)
                                           Q_inverse, G_inverse ← Reduced[…](gathered)

A process's program has its own inversions only. The longest goes first, always to the process that has least
to do by then [Graham 1969, *Bounds on multiprocessing timing anomalies*]: nobody does more than 4/3 of what
the best distribution takes. All that a phase inverts goes in one message.
"""

from __future__ import annotations

from dataclasses import replace

from ..base.names import Names
from ..base.tables import engineering
from . import operations as ir
from .collectives import AllGather, Reduced, sent_elements
from .costs import CostModel
from .program_check import check
from .specs import Spec
from .step_program import Instruction, Origin, StepProgram

LEAST = 48
"""Matrices of fewer rows are inverted by all: that takes no longer than a message does."""


def own_work(program: StepProgram, rank: int, size: int) -> StepProgram:
    """The program of process ``rank`` of ``size``, without what others do for it."""
    instructions = [*program.leaves()]
    names = program.names()
    for phase in program.phases:
        own = [i for i in program.phase(phase) if not isinstance(i.op, ir.Leaf)]
        shared = [i for i in own if _may_be_shared(program, i)]
        if len(shared) > 1:
            owners, flops = _distributed(program, shared, size)
            own = [i for i in own if owners.get(i.name, rank) == rank]
            own += _gathered(names, phase, shared, owners, flops, rank)
        instructions += own
    result = replace(program, instructions=tuple(instructions))
    check(result)
    return result


def shared_work(program: StepProgram) -> list[str]:
    """What each process computes for all, a sentence for every phase that has such work."""
    found = []
    for i in program:
        if isinstance(i.op, AllGather):
            each = ", ".join(map(engineering, i.op.flops))
            every = f"processes 0 to {len(i.op.flops) - 1} compute {each}FLOP for all"
            found.append(f"{i.phase}: {every}; this is process {i.op.rank}")
    return found


def _may_be_shared(program: StepProgram, i: Instruction) -> bool:
    """Whether one process may compute it for all: a state that is made of whole values, and read later."""
    matrix = isinstance(i.op, ir.DampedInverse | ir.Eigen) and len(i.spec.shape) == 2
    return (
        matrix
        and int(i.spec.shape[1]) >= LEAST
        and i.into is not None
        and not any(r.phase == i.phase for n in (i.name, i.into) for r in program.readers[n])
    )


def _distributed(
    program: StepProgram, shared: list[Instruction], size: int
) -> tuple[dict[str, int], tuple[int, ...]]:
    """The process of every instruction, and the FLOPs of every process."""
    costs, loads, owners = CostModel(program, 1), [0] * size, dict[str, int]()
    flops = {i.name: costs.of(i).flops for i in shared}
    for name in sorted(flops, key=lambda name: -flops[name]):
        owners[name] = min(range(size), key=loads.__getitem__)
        loads[owners[name]] += flops[name]
    return owners, tuple(loads)


def _gathered(
    names: Names,
    phase: str,
    shared: list[Instruction],
    owners: dict[str, int],
    flops: tuple[int, ...],
    rank: int,
) -> list[Instruction]:
    """What all processes have computed, sent to all: the message, and what is in it."""
    filled, starts = [0] * len(flops), dict[str, int]()
    for i in shared:
        starts[i.name] = filled[owners[i.name]]
        filled[owners[i.name]] += sent_elements(i.spec)
    room = max(filled)
    name = names.fresh(f"gathered_{phase}")
    gather = Instruction(
        name,
        AllGather(rank, room, flops),
        tuple(i.name for i in shared if owners[i.name] == rank),
        Spec((room * len(flops),)),
        phase,
        comment="of all processes",
        origin=Origin(role=phase),
    )
    taken = [
        replace(
            i,
            name=names.fresh(f"{i.name}_all"),
            op=Reduced(owners[i.name] * room + starts[i.name], i.spec),
            inputs=(name,),
        )
        for i in shared
    ]
    return [gather, *taken]
