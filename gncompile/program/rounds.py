"""The order of a phase whose instructions are done in rounds: what has to be done before what."""

from __future__ import annotations

from collections.abc import Callable

from . import operations as ir
from .collectives import MESSAGES
from .step_program import Instruction, StepProgram

DRAWS = "draws"
"""Stands for the source of random numbers, which every draw changes."""
SENT = "sent"
"""Stands for the way to other processes, on which messages have to keep their order."""


def rounds(
    program: StepProgram,
    phase: str,
    delay: Callable[[str], int] = lambda name: 0,
    at_least: Callable[[Instruction, int], int] = lambda i, number: number,
) -> dict[str, int]:
    """The round of every instruction of a phase, the first in which it may be done.

    A value is read ``delay(value)`` rounds after it is made; ``at_least(i, number)`` is the round of an
    instruction that may be done in the one of this number. One that overwrites a tensor comes after those
    that read or wrote it; draws keep their order, and so do messages.
    """
    home, found = program.storage, dict[str, int]()
    touched, written = dict[str, int](), dict[str, int]()  # by tensor, in which round the last time
    for i in program.phase(phase):
        own = home[i.name]
        if isinstance(i.op, (ir.Random, *MESSAGES)):
            own = DRAWS if isinstance(i.op, ir.Random) else SENT
        made = [name for name in i.inputs if name in found]
        number = max((found[name] + delay(name) for name in made), default=0)
        number = max([number, *(written.get(home[name], 0) for name in i.inputs)])
        writes = i.into is not None or own in (DRAWS, SENT)
        if writes:
            number = max(number, touched.get(own, 0))
        number = found[i.name] = at_least(i, number)
        if writes:
            written[own] = number
        for tensor in (own, *(home[name] for name in i.inputs)):
            touched[tensor] = max(touched.get(tensor, 0), number)
    return found
