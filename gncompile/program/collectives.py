"""Operations of a step program on the numbers of many processes; one process has none of them.

Each process computes means over its own part of a batch. An :class:`AllReduce` makes those of the whole batch
of several values at once, ``Σ_r N_r mean_r / Σ_r N_r``, and :class:`Reduced` takes one of them out::

    bucket = AllReduce(grad_fc1, Q_fc1, loss)      one message
    grad   = Reduced(bucket)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .specs import Spec, Structure

Over = Literal["N", "F", "Q", "L", "total"]
"""What a process's value is a mean over, one of :data:`~gncompile.program.specs.SAMPLES`; or :data:`SUM`."""
SUM: Over = "total"
"""It is a sum over samples, and so is that of all processes."""


@dataclass(frozen=True)
class AllReduce:
    """The inputs of all processes added up, side by side in one vector; a symmetric matrix as a triangle.

    ``over`` says of each input what it is a mean over: it is weighed with the process's share of these
    samples, a sum with 1.
    """

    over: tuple[Over, ...]


@dataclass(frozen=True)
class AllGather:
    """What every process has made for all, in one vector: this one's inputs begin at ``places``.

    Each process has ``room`` numbers of it, those of ``rank`` in their turn. Where few of many processes have
    made anything, that would be mostly empty: the room is 0 then, and vectors of the ``total`` are added up,
    zeros wherever a process has nothing. ``flops`` is what each has computed for it.
    """

    rank: int
    room: int
    total: int
    flops: tuple[int, ...]
    places: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        """The numbers of the vector."""
        return self.room * len(self.flops) or self.total


@dataclass(frozen=True)
class CongruenceRows:
    """``count`` rows from the ``first`` on of ``Wᵀ M W = (M W)ᵀ W`` for a symmetric M (inputs W, M)."""

    first: int
    count: int


@dataclass(frozen=True)
class Reduced:
    """The value of this ``spec`` that begins at an element of a bucket; a triangle, or ``in_full``."""

    start: int
    spec: Spec
    in_full: bool = False

    @property
    def triangle(self) -> bool:
        """Whether it is a triangle of a symmetric matrix."""
        return is_triangle(self.spec) and not self.in_full

    @property
    def elements(self) -> int:
        """How many numbers it has in the bucket."""
        return sent_elements(self.spec) if self.triangle else math.prod(map(int, self.spec.shape))


OPERATIONS = (AllReduce, AllGather, CongruenceRows, Reduced)
MESSAGES = (AllReduce, AllGather)
"""What all processes do together, in the same order."""


def is_triangle(spec: Spec) -> bool:
    """Whether a value goes as a triangle."""
    return spec.structure is Structure.SYMMETRIC


def sent_elements(spec: Spec) -> int:
    """How many numbers of a value are sent."""
    if is_triangle(spec):
        return spec.size * (spec.size + 1) // 2
    return math.prod(int(d) for d in spec.shape)


def bucket_size(specs: Sequence[Spec]) -> int:
    """The length of the vector that values of these specs make."""
    return sum(map(sent_elements, specs))
