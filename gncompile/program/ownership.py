"""Work on values that all processes have, shared out: each does some, and sends what it has made.

::

    delta_0 = Precondition(grad_0, …)        delta_0     = Precondition(grad_0, …)          of process 0
    delta_2 = Precondition(grad_2, …)    →   gathered    = AllGather[0, …](delta_0)
                                             delta_2_all = Reduced[…](gathered)

Two things decide whose an instruction is.

* **Cost.** Inversions, eigendecompositions, directions: what takes :data:`NUMBER` FLOPs for each number of
  its result is done by one process, where all that can be done at the same time is worth a message. The
  longest goes first, always to the process that has least to do by then [Graham 1969, *Bounds on
  multiprocessing timing anomalies*]: nobody does more than 4/3 of what the best distribution takes.
* **Memory.** A state that is ``kept_with`` a layer (``Settings.factors``) is on one process alone, which does
  all that reads or writes it, and sends what others need: the factors' averages and inverses never leave it,
  and the direction does [Pauloski et al. 2021, *KAISA: an adaptive second-order optimizer framework for
  deep neural networks*: MEM-OPT]. Layers are distributed in the same way, by all that is done for them.

KFRA's recursion has one product after another, which no owner shortens. Of a long ``Wᵀ M W`` each process
makes some rows, where that is worth a message (``by_rows``; the last bits then depend on how many)::

    m = Multiply(M, W)                       rows     = CongruenceRows[0, 500](W, M)        of process 0
    G = SymmetricProduct(W, m)           →   gathered = AllGather[0, …](rows)
                                             G        = Reduced[0](gathered)

A phase is done in rounds, with one message between two of them. What is sent does not depend on the number
of processes, so that neither do the results of deterministic steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from ..base.tables import binary_size, engineering
from ..errors import InternalError
from . import operations as ir
from .collectives import (
    MESSAGES,
    AllGather,
    CongruenceRows,
    Reduced,
    is_triangle,
    sent_elements,
)
from .costs import CostModel
from .phases import Repeat
from .program_check import check
from .rounds import rounds
from .shards import of_a_part
from .specs import Spec
from .step_program import Instruction, Origin, StepProgram

NUMBER = 100
"""FLOPs that take a CPU core as long as a number takes to be sent, copied in and out: 1 to 3 ns."""
MESSAGE = 10**7
"""FLOPs that take it as long as a message without numbers: 0.1 to 0.3 ms between processes of one machine."""


def own_work(program: StepProgram, rank: int, size: int, by_rows: bool = False) -> StepProgram:
    """The program of process ``rank`` of ``size``, without what others do for it or keep."""
    result = _Ownership(program, rank, size, by_rows).program()
    check(result)
    return result


def shared_work(program: StepProgram, itemsize: int = 4) -> list[str]:
    """What each process computes and keeps for all, a sentence for every phase that has such work."""
    found = []
    for i in program:
        if isinstance(i.op, AllGather):
            each = ", ".join(map(engineering, i.op.flops))
            every = f"processes 0 to {len(i.op.flops) - 1} compute {each}FLOP for all"
            found.append(f"{i.phase}: {every}; this is process {i.op.rank}")
    if program.kept:
        costs = CostModel(program, 1, itemsize)
        held = dict.fromkeys(range(1 + max(rank for rank, _ in program.kept.values())), 0)
        for rank, state in program.kept.values():
            held[rank] += costs.elements(state.spec) * itemsize
        each = ", ".join(map(binary_size, held.values()))
        every = f"processes 0 to {len(held) - 1}"
        found.append(f"averages and inverses of factors: {every} keep {each}")
    return found


class _Ownership:
    """Whose the instructions of a program are (``owners``), and what they make for others (``sent``)."""

    def __init__(self, program: StepProgram, rank: int, size: int, by_rows: bool) -> None:
        self.old, self.rank, self.size = program, rank, size
        self.names, self.costs = program.names(), CostModel(program, 1)
        self.parts = of_a_part(program)
        self.kept_with = {
            leaf.name: state.kept_with
            for leaf in program.leaves("state")
            if (state := program.states[leaf.op.key]).kept_with  # type: ignore[union-attr]
        }
        self.owners, self.sent, self.keepers = dict[str, int](), set[str](), dict[str, int]()
        self._by_keeper()
        for phase in program.step:
            if phase.repeat is not Repeat.COLUMNS:
                self._by_cost(phase.name)
        whole = {i.name for phase in program.step if phase.repeat is not Repeat.COLUMNS
                 for i in program.phase(phase.name) if self._is_long_congruence(i)}  # fmt: skip
        self.by_rows = whole if by_rows else set[str]()
        self.within = {program[name].inputs[1] for name in self.by_rows}
        """Products that nothing but these would read."""
        self.all = {
            name: self.names.fresh(f"{name}_all")
            for name in (i.name for i in program)
            if name in self.sent and self._is_taken(program[name])
        }
        """What has another name once it was sent."""

    def _is_taken(self, i: Instruction) -> bool:
        """Whether this process takes a value from a message: its own only where a triangle was sent."""
        return self.owners[i.name] != self.rank or is_triangle(i.spec)

    # --- by memory ------------------------------------------------------------------------------------

    def _by_keeper(self) -> None:
        """What reads or writes a kept state, or what is made of it for its layer alone, is the keeper's."""
        layers = self._layers()
        private = self._private(layers)
        layer_of = dict[str, str]()
        for i in self.old:
            near = any(n in self.kept_with or n in private for n in self._touched(i))
            if not near or isinstance(i.op, ir.Leaf):
                continue
            if not self._is_of_one(i, layers):
                raise InternalError(f"{i}: no single process has what it reads")
            (layer_of[i.name],) = layers[i.name]
            if i.name not in private:
                self.sent.add(i.name)
        flops = dict.fromkeys(self.kept_with.values(), 0)
        for name, layer in layer_of.items():
            flops[layer] += self._flops(name)
        self.keepers = self._distributed(flops)
        self.owners = {name: self.keepers[layer] for name, layer in layer_of.items()}

    def _layers(self) -> dict[str, set[str]]:
        """By value: the layers whose kept states it is made of, within its phase."""
        found = dict[str, set[str]]()
        for i in self.old:
            found[i.name] = {self.kept_with[n] for n in self._touched(i) if n in self.kept_with}
            for name in i.inputs:
                if self.old[name].phase == i.phase:
                    found[i.name] |= found[name]
        return found

    def _is_of_one(self, i: Instruction, layers: Mapping[str, set[str]]) -> bool:
        return len(layers[i.name]) == 1 and i.name not in self.parts

    def _private(self, layers: Mapping[str, set[str]]) -> set[str]:
        """Values that nothing reads but work of the same phase and layer."""
        results = {*self.old.results.values()}
        return {
            i.name
            for i in self.old
            if self._is_of_one(i, layers)
            and i.name not in results
            and (i.into is None or i.into in self.kept_with)
            and all(
                r.phase == i.phase and self._is_of_one(r, layers) for r in self.old.readers[i.name]
            )
        }

    @staticmethod
    def _touched(i: Instruction) -> tuple[str, ...]:
        return i.inputs if i.into is None else (*i.inputs, i.into)

    # --- by cost --------------------------------------------------------------------------------------

    def _by_cost(self, phase: str) -> None:
        """What is long has an owner, if in its round there is enough of it for a message."""
        flops = {i.name: self._flops(i.name) for i in self.old.phase(phase) if self._is_long(i)}
        number = rounds(self.old, phase, delay=lambda n: n in flops or n in self.sent)
        for each in {number[name] for name in flops}:
            together = {name: count for name, count in flops.items() if number[name] == each}
            if sum(together.values()) - max(together.values()) >= MESSAGE:
                self.owners |= self._distributed(together)
                self.sent |= together.keys()

    def _is_long(self, i: Instruction) -> bool:
        """Whether all have what it reads, and it takes longer than sending the matrix that it makes."""
        known = i.name in self.parts or i.name in self.owners or isinstance(i.op, MESSAGES)
        if known or len(i.spec.shape) != 2:
            return False
        if i.into is not None and any(
            r.phase == i.phase and r != i for n in (i.name, i.into) for r in self.old.readers[n]
        ):
            return False
        return self._flops(i.name) >= NUMBER * sent_elements(i.spec)

    def _flops(self, name: str) -> int:
        return self.costs.of(self.old[name]).flops

    def _distributed(self, flops: Mapping[str, int]) -> dict[str, int]:
        """A process for each of these, the longest first."""
        loads, owners = [0] * self.size, dict[str, int]()
        for name in sorted(flops, key=lambda name: -flops[name]):
            owners[name] = min(range(self.size), key=loads.__getitem__)
            loads[owners[name]] += flops[name]
        return owners

    # --- by rows --------------------------------------------------------------------------------------

    def _is_long_congruence(self, i: Instruction) -> bool:
        """Whether it is a ``Wᵀ M W`` of which a half takes longer than to send all of it."""
        if not isinstance(i.op, ir.SymmetricProduct):
            return False
        product = self.old[i.inputs[1]]
        if not isinstance(product.op, ir.Multiply) or product.inputs[1] != i.inputs[0]:
            return False
        alone = product.phase == i.phase and self.old.readers[product.name] == [i]
        if not alone or any(n in self.parts or n in self.owners for n in (i.name, product.name)):
            return False
        flops = self._flops(i.name) + self._flops(product.name)
        return flops / 2 >= MESSAGE + NUMBER * i.spec.size**2

    def _rows(self, i: Instruction) -> Iterator[Instruction]:
        """This process's rows, and those of all."""
        w, size = i.inputs[0], i.spec.size
        m = self.old[i.inputs[1]].inputs[0]
        most = -(-size // self.size)
        firsts = [min(rank * most, size) for rank in range(self.size + 1)]
        counts = [b - a for a, b in pairwise(firsts)]
        rows, first = self.names.fresh(f"{i.name}_rows"), firsts[self.rank]
        op = CongruenceRows(first, counts[self.rank])
        own = replace(
            i, name=rows, op=op, inputs=(w, self.all.get(m, m)), spec=Spec((op.count, size))
        )
        if op.count:
            yield own
        whole = self._flops(i.name) + self._flops(i.inputs[1])
        flops = [whole * count // size for count in counts]
        place = {rows: self.rank * most * size} if op.count else {}
        gather = self._message(i.phase, place, most * size, size**2, flops)
        yield gather
        yield replace(i, op=Reduced(0, i.spec, in_full=True), inputs=(gather.name,))

    # --- the program of this process --------------------------------------------------------------------

    def program(self) -> StepProgram:
        """What is left to do here, and to keep."""
        old = self.old
        kept = {
            key: (self.keepers[state.kept_with], state)
            for key, state in old.states.items()
            if state.kept_with and self.size > 1
        }
        gone = {key for key, (rank, _) in kept.items() if rank != self.rank}
        away = {n for n, layer in self.kept_with.items() if self.keepers[layer] != self.rank}
        leaves = [leaf for leaf in old.leaves() if leaf.name not in away]
        phases = [i for phase in old.phases for i in self._phase(phase)]
        return replace(
            old,
            instructions=(*leaves, *phases),
            states={key: state for key, state in old.states.items() if key not in gone},
            results={role: self.all.get(name, name) for role, name in old.results.items()},
            kept=kept,
        )

    def _phase(self, phase: str) -> Iterator[Instruction]:
        number = rounds(self.old, phase, delay=lambda n: n in self.sent)
        for each in sorted(set(number.values())):
            now = [i for i in self.old.phase(phase) if number[i.name] == each]
            for i in now:
                renamed = replace(
                    i, inputs=tuple(self.all.get(n, n) for n in i.inputs), into=self._into(i)
                )
                if i.name in self.by_rows:
                    yield from self._rows(renamed)
                elif i.name not in self.within and self.owners.get(i.name, self.rank) == self.rank:
                    yield renamed
            if sent := [i for i in now if i.name in self.sent]:
                yield from self._gathered(phase, sent, now)

    def _into(self, i: Instruction) -> str | None:
        return i.into if i.into is None else self.all.get(i.into, i.into)

    def _gathered(
        self, phase: str, sent: Collection[Instruction], now: Collection[Instruction]
    ) -> Iterator[Instruction]:
        """What all processes have computed ``now``, sent to all: the message, and what is in it."""
        flops, filled, starts = [0] * self.size, [0] * self.size, dict[str, int]()
        for i in now:
            if i.name in self.owners:
                flops[self.owners[i.name]] += self._flops(i.name)
        for i in sent:
            starts[i.name] = filled[self.owners[i.name]]
            filled[self.owners[i.name]] += sent_elements(i.spec)
        room, first = max(filled), [sum(filled[:rank]) for rank in range(self.size)]
        if room * self.size > 2 * sum(filled):  # a sum sends everything twice
            room = 0
        else:
            first = [rank * room for rank in range(self.size)]
        places = {i.name: first[self.owners[i.name]] + starts[i.name] for i in sent}
        own = {name: at for name, at in places.items() if self.owners[name] == self.rank}
        gather = self._message(phase, own, room, sum(filled), flops)
        yield gather
        for i in sent:
            if i.name in self.all:
                op, inputs = Reduced(places[i.name], i.spec), (gather.name,)
                yield replace(i, name=self.all[i.name], op=op, inputs=inputs, into=self._into(i))

    def _message(
        self, phase: str, own: Mapping[str, int], room: int, total: int, flops: Iterable[int]
    ) -> Instruction:
        """What every process has made, side by side on all; this one has made ``own``, each for a place."""
        op = AllGather(self.rank, room, total, tuple(flops), tuple(own.values()))
        return Instruction(
            self.names.fresh(f"gathered_{phase}"),
            op,
            tuple(own),
            Spec((op.elements,)),
            phase,
            comment="of all processes",
            origin=Origin(role=phase),
        )
