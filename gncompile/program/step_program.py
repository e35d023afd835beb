"""The second intermediate representation: a training step as an SSA program over tensors and matrices.

A :class:`StepProgram` is a list of :class:`Instruction`, grouped into *phases* (``phases.py``: ``gradient``,
``curvature``, ``direction``, …) that a backend runs in order; some are optional or repeated. An instruction
is ``value = op(inputs)``, or ``state ← op(inputs)`` when ``into`` names the state it overwrites.
The operations are those of :mod:`~gncompile.program.operations`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ..base.names import RESERVED, Names
from ..errors import InternalError
from .convolutions import FeaturesLast, Windowed
from .operations import VIEWS, Flatten, Leaf, LeafKind, Op, Unflatten, describe
from .phases import Phase, Repeat
from .specs import COLUMNS, Spec


@dataclass(frozen=True)
class Origin:
    """Whose work an instruction is in the user's graph: for which node, which layer, in which part of a step.

    What is for no single one of them has ``""``. The role is the phase's name, or within the phases of the
    gradient and the factors what is made there: ``forward``, ``loss``, ``gradient``, ``input factor``,
    ``output factor``.
    """

    node: str = ""
    layer: str = ""
    role: str = ""


@dataclass(frozen=True)
class Instruction:
    """``name = op(inputs) : spec``; ``into`` is what it overwrites, if anything.

    That is a state or parameter leaf, or a value that an earlier phase computed.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    spec: Spec
    phase: str
    into: str | None = None
    comment: str = ""
    origin: Origin = Origin()

    def __str__(self) -> str:
        target = f"{self.into} ←" if self.into else f"{self.name} ="
        return f"{target} {describe(self.op)}({', '.join(self.inputs)}) : {self.spec}"


@dataclass(frozen=True)
class State:
    """A tensor that survives from step to step: its spec and the value it starts from.

    Of many processes one has it alone, with all others that are ``kept_with`` the same; all do for ``""``.
    """

    spec: Spec
    initial: Literal["zero", "one", "identity"] | float = "zero"
    kept_with: str = ""


@dataclass(frozen=True)
class StepProgram:
    """Instructions in execution order, the states they use, and the values the trainer asks for by role.

    ``nodes`` names the value that holds each node's result on the whole batch. ``step`` are its phases as
    records, in the order of a step. ``columns`` is how many columns or draws those that repeat for them
    have to go through, ``products`` how many curvature products at most; the result ``going`` is 0 once more
    would change nothing. ``methods`` is the curvature method of every layer, and ``reasons`` says why if it
    was chosen by cost. ``kept`` are the states that one process has alone, this one or another: its rank, and
    the state.
    """

    instructions: tuple[Instruction, ...]
    states: dict[str, State] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    columns: int = 0
    methods: dict[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    step: tuple[Phase, ...] = ()
    products: int = 0
    kept: dict[str, tuple[int, State]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions)

    def __getitem__(self, name: str) -> Instruction:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def readers(self) -> dict[str, list[Instruction]]:
        """For every value the instructions that read it, in order, each once."""
        readers: dict[str, list[Instruction]] = {i.name: [] for i in self}
        for i in self:
            for name in dict.fromkeys(i.inputs):
                readers[name].append(i)
        return readers

    @cached_property
    def storage(self) -> dict[str, str]:
        """The tensor that every value lives in: the leaf it overwrites, what it is a view of, or its own."""
        home: dict[str, str] = {}
        for i in self:
            source = (
                i.into if i.into is not None else i.inputs[0] if isinstance(i.op, VIEWS) else None
            )
            home[i.name] = i.name if source is None else home[source]
        return home

    @cached_property
    def packed(self) -> frozenset[str]:
        """The tensors of :attr:`storage` that are viewed in another shape: nothing may pad their rows."""
        reshaped = (i.name for i in self if isinstance(i.op, Unflatten | Flatten | FeaturesLast))
        operations = ((i, i.op) for i in self if isinstance(i.op, Windowed))
        grids = (name for i, op in operations for name in op.grids(i.inputs, i.name))
        return frozenset(self.storage[name] for name in (*reshaped, *grids))

    @cached_property
    def overwritten(self) -> frozenset[str]:
        """The tensors of :attr:`storage` that an instruction overwrites."""
        return frozenset(self.storage[i.name] for i in self if i.into is not None)

    @cached_property
    def phases(self) -> tuple[str, ...]:
        """Phase names in order of first use, leaves excluded."""
        return tuple(self._by_phase)

    @cached_property
    def _by_phase(self) -> dict[str, list[Instruction]]:
        phases: dict[str, list[Instruction]] = {}
        for i in self:
            if not isinstance(i.op, Leaf):
                phases.setdefault(i.phase, []).append(i)
        return phases

    def phase(self, name: str) -> list[Instruction]:
        """The instructions of one phase, without leaves."""
        return list(self._by_phase.get(name, ()))

    def record(self, name: str) -> Phase:
        """The phase of this name; :class:`InternalError` if the program has none."""
        if name not in self._records:
            raise InternalError(
                f"the program has no phase {name!r}; it has {', '.join(self._records)}"
            )
        return self._records[name]

    @cached_property
    def _records(self) -> dict[str, Phase]:
        return {phase.name: phase for phase in self.step}

    def names(self) -> Names:
        """Further names for values and phases, besides those that are taken."""
        return Names(RESERVED | {i.name for i in self} | self._records.keys())

    def goes_by_columns(self, name: str) -> bool:
        """Whether a phase is run for one chunk of columns, or draw, after another."""
        return self.record(name).repeat is Repeat.COLUMNS

    @cached_property
    def columns_meet(self) -> bool:
        """Whether a value has numbers for each pair of columns, so that all have to be there at once."""
        return any(i.spec.shape.count(COLUMNS) > 1 for i in self)

    def leaves(self, kind: LeafKind | None = None) -> list[Instruction]:
        """Leaf instructions, of one kind if given."""
        return [i for i in self if isinstance(i.op, Leaf) and kind in (None, i.op.kind)]

    def to_text(self) -> str:
        """The program as text, phase by phase, with a comment where an instruction has one."""
        lines = []
        for phase in self.phases:
            lines.append(f"{phase}:")
            for instruction in self.phase(phase):
                comment = f"   # {instruction.comment}" if instruction.comment else ""
                lines.append(f"  {instruction}{comment}")
        return "\n".join(lines)
