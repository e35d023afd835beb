"""A program whose batch lies in shards: phases in segments, done on one shard after another, or once for all.

::

    gradient:                              gradient_1, of each shard:
      grad = Moment(g, x)                    grad = Moment(g, x)
      bucket = AllReduce(grad)        →      bucket = AllReduce(grad)
      grad_all = Reduced(bucket)           gradient_2, once:
                                             grad_all = Reduced(bucket)

The batch of a deterministic step lies in :data:`SHARDS` of them, however many processes there are. A shard's
values are made in the same way on whichever process, and its buckets are added up in the same order: so all
that follows has the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import InternalError
from . import operations as ir
from .collectives import AllReduce, Reduced
from .phases import Phase
from .program_check import check
from .rounds import rounds
from .step_program import Instruction, StepProgram

SHARDS = 8
"""The shards of a batch; the number of processes divides it."""


@dataclass(frozen=True)
class Segmented:
    """A ``program`` whose phases are segments, in ``segments`` those of every phase that was.

    ``apart`` are the segments that are done for each shard, ``drawing`` those of them that draw random
    numbers, ``whole`` the values that all shards share, and ``states`` those that each has of its own.
    """

    program: StepProgram
    segments: Mapping[str, tuple[str, ...]]
    apart: frozenset[str]
    drawing: frozenset[str]
    whole: frozenset[str]
    states: frozenset[str]


def segmented(program: StepProgram) -> Segmented:
    """The segments of a program of many processes (:mod:`gncompile.program.reductions`)."""
    own = of_a_part(program)
    names = program.names()
    instructions, step = [*program.leaves()], list[Phase]()
    segments, apart, drawing = dict[str, tuple[str, ...]](), set[str](), set[str]()

    def in_turn(i: Instruction, number: int) -> int:
        """Even rounds are those of shards."""
        return number + (number % 2 == (i.name in own))

    for phase in program.step:
        number = rounds(program, phase.name, at_least=in_turn)
        found = list[str]()
        for each in sorted(set(number.values())):
            part = [i for i in program.phase(phase.name) if number[i.name] == each]
            segment = names.fresh(f"{phase.name}_{len(found) + 1}")
            found.append(segment)
            step.append(replace(phase, name=segment))
            if each % 2 == 0:
                apart.add(segment)
                if any(isinstance(i.op, ir.Random) for i in part):
                    drawing.add(segment)
                if sum(isinstance(i.op, AllReduce) for i in part) > 1:
                    raise InternalError(f"two buckets of {segment!r} wait for the same shards")
            instructions += [replace(i, phase=segment) for i in part]
        segments[phase.name] = tuple(found)
    result = replace(program, instructions=tuple(instructions), step=tuple(step))
    check(result)
    whole = frozenset(i.name for i in program if i.name not in own)
    states = frozenset(leaf.op.key for leaf in program.leaves("state") if leaf.name in own)  # type: ignore[union-attr]
    return Segmented(result, segments, frozenset(apart), frozenset(drawing), whole, states)


def of_a_part(program: StepProgram) -> set[str]:
    """The values that depend on which part of the batch it is: all made of samples, until it is reduced."""
    home, found = program.storage, set[str]()

    def is_own(i: Instruction) -> bool:
        made = not isinstance(i.op, Reduced) and not found.isdisjoint(i.inputs)
        return made or bool(i.spec.samples) or home[i.name] in found

    while more := {n for i in program if is_own(i) for n in (i.name, home[i.name])} - found:
        found |= more
    if wrong := [leaf.name for leaf in program.leaves("parameter") if leaf.name in found]:
        raise InternalError(f"{', '.join(wrong)}: written by a part of the batch")
    return found
