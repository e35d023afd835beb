"""One program for many processes: what is a mean over the samples of one becomes a mean over those of all.

A value without a dimension of samples, made of one that has it, is *partial*: each process has that of its
own part of the batch. Partial values are sums (weighed by each part's share), so what is linear in them alone
may still be done with the parts. All else needs the whole: there a reduction is inserted.

::

    grad  = Moment(g, x)             grad   = Moment(g, x)
    loss  = Total[mean](e)      →    loss   = Total[mean](e)
    delta = P(grad)                  bucket = AllReduce[N, N](grad, loss)
                                     grad_all, loss_all = Reduced[0](bucket), Reduced[…](bucket)
                                     delta  = P(grad_all)

The reductions of a phase are as few as its values allow. An instruction's *round* is the number of
reductions that have to come before it; a phase is put in the order of rounds, with one bucket between two of
them. KFRA's recursion meets the batch only in the mean Hessian of the loss and in moments of slopes, all
known after the forward pass: one bucket. Where a node's average reads a block of the recursion together with
the samples, as a normalisation's does, the program has a bucket more for each.

What a phase that goes by columns leaves partial is reduced after all of its runs, in a phase of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import sympy

from ..errors import CompileError, InternalError
from . import convolutions as grids
from . import exact, lookups
from . import operations as ir
from .collectives import SUM, AllReduce, Over, Reduced, sent_elements
from .phases import Phase, Repeat
from .program_check import check
from .rounds import rounds
from .specs import Spec
from .step_program import Instruction, Origin, StepProgram

MEANS = (
    ir.Moment, ir.PlaceMoments, ir.Mean, ir.DiagonalMoment, grids.ConvolveGradient,
    lookups.LookupGradient, lookups.Counts,
)  # fmt: skip
"""Operations that are means over the samples of their first operand."""

LINEAR = (
    *ir.VIEWS, ir.PlaceBlocks, ir.PlusTranspose, ir.TakeDiagonal, ir.Trace, grids.BlockDiagonal
)  # fmt: skip
"""Operations linear in their one operand whose result is no larger: the parts may wait behind them."""


def for_processes(program: StepProgram) -> StepProgram:
    """The program of one of many processes; see the module docstring.

    Raises :class:`~gncompile.errors.CompileError` for what relates samples of different processes.
    """
    return _Reductions(program).program()


def is_joined(program: StepProgram) -> bool:
    """Whether this is the program of one of many processes."""
    return any(isinstance(i.op, AllReduce) for i in program)


class _Reductions:
    def __init__(self, program: StepProgram) -> None:
        self.old = program
        self.names = program.names()
        self.repeated = {p.name for p in program.step if p.repeat is Repeat.COLUMNS}
        self.over: dict[str, Over] = {}
        """What a partial value is a mean over."""
        self.waiting: set[str] = set()
        """Those that are made of other partial values."""
        self._find_partial()
        self.whole = self._wanted_whole()
        """Those that are reduced where they are made."""
        self.all = {
            i.name: self.names.fresh(f"{i.name}_all") for i in program if i.name in self.whole
        }

    # --- what is partial, and what has to be whole ----------------------------------------------------

    def _find_partial(self) -> None:
        for i in self.old:
            if over := self._made_of_samples(i):
                self.over[i.name] = over
            elif self._waits(i):
                self.over[i.name] = next(self.over[n] for n in i.inputs if n in self.over)
                self.waiting.add(i.name)

    def _made_of_samples(self, i: Instruction) -> Over | None:
        """What an instruction that takes the samples away is a mean over; None for any other."""
        samples = next((s for n in i.inputs if (s := self.old[n].spec.samples)), "")
        if not samples or i.spec.samples:
            if isinstance(i.op, exact.RowGram):
                raise CompileError(
                    "exact_form='dual' has a row for every pair of samples, and the samples lie on many "
                    "processes",
                    instead="use exact_form='primal', or solver='kronecker'",
                )
            return None
        if isinstance(i.op, MEANS):
            return cast(Over, self.old[i.inputs[0]].spec.samples)
        if isinstance(i.op, ir.Total | ir.Dot):
            return cast(Over, samples) if i.op.mean else SUM
        raise InternalError(f"{i} takes the samples away, and it is not known how")

    def _waits(self, i: Instruction) -> bool:
        """Whether an instruction is linear in partial values of one kind and nothing else."""
        parts = {self.over[name] for name in i.inputs if name in self.over}
        if len(parts) != 1:
            return False
        if self._accumulates(i):
            return True
        if i.into is not None or not all(name in self.over for name in i.inputs):
            return False
        if isinstance(i.op, ir.Pointwise):
            same = all(self.old[name].spec.shape == i.spec.shape for name in i.inputs)
            return same and _is_linear(i.op.expression)
        return isinstance(i.op, LINEAR) and len(i.inputs) == 1

    def _accumulates(self, i: Instruction) -> bool:
        """Whether it adds a partial value to what was zero before the first of a phase's runs."""
        added = isinstance(i.op, ir.Pointwise) and i.op.expression == sympy.Add(*i.op.symbols)
        return added and i.phase in self.repeated and i.into in i.inputs

    def _wanted_whole(self) -> set[str]:
        """Those that something reads that cannot do with parts; what reads one that is whole takes it so."""
        old, results = self.old, {*self.old.results.values()}
        whole = {name for name in self.over if name in results or self._is_read_whole(old[name])}
        waiting = [i for i in old if i.name in self.waiting]
        while more := {
            name
            for i in waiting
            if not whole.isdisjoint(i.inputs)
            for name in i.inputs
            if name in self.over and name not in whole
        }:
            whole |= more
        for i in waiting:
            if not any(name in self.over and name not in whole for name in i.inputs):
                del self.over[i.name]  # of whole values only
                whole.discard(i.name)
        return whole

    def _is_read_whole(self, i: Instruction) -> bool:
        if i.into is not None and not self._accumulates(i):
            return True
        readers = self.old.readers[i.name]
        return any(r.name not in self.waiting or r.phase != i.phase for r in readers)

    # --- the new program ------------------------------------------------------------------------------

    def program(self) -> StepProgram:
        """The old one with its reductions."""
        old = self.old
        instructions = [*old.leaves()]
        step: list[Phase] = []
        for phase in old.step:
            numbers = self._rounds(phase.name)
            ordered = sorted(old.phase(phase.name), key=lambda i: numbers[i.name])
            if phase.repeat is Repeat.COLUMNS:
                instructions += map(self._part, ordered)
                step.append(phase)
                if left := [i for i in ordered if i.name in self.whole]:
                    after = Phase(
                        self.names.fresh(f"{phase.name}_joined"),
                        phase.stage,
                        (*phase.sees, phase.name),
                        phase.when,
                    )
                    step.append(after)
                    instructions += self._bucket(after.name, left)
                continue
            step.append(phase)
            for number in range(1 + max(numbers.values(), default=0)):
                now = [i for i in ordered if numbers[i.name] == number]
                instructions += map(self._part, now)
                instructions += self._bucket(phase.name, [i for i in now if i.name in self.whole])
        results = {role: self.all.get(name, name) for role, name in old.results.items()}
        program = replace(old, instructions=tuple(instructions), step=tuple(step), results=results)
        check(program)
        return program

    def _part(self, i: Instruction) -> Instruction:
        """The instruction as each process runs it on its part."""
        op, into = i.op, i.into
        if isinstance(op, ir.Random) and i.spec.samples:
            op = replace(op, joined=True)
        if not self._accumulates(i):  # of a partial value it is the whole that overwrites
            into = None if into is None or i.name in self.whole else self.all.get(into, into)
        return replace(i, op=op, inputs=tuple(self.all.get(n, n) for n in i.inputs), into=into)

    def _bucket(self, phase: str, values: list[Instruction]) -> Iterator[Instruction]:
        """One reduction of what these instructions have made."""
        if not values:
            return
        sizes = [sent_elements(i.spec) for i in values]
        bucket = Instruction(
            self.names.fresh(f"bucket_{phase}"),
            AllReduce(tuple(self.over[i.name] for i in values)),
            tuple(i.name for i in values),
            Spec((sum(sizes),)),
            phase,
            comment="over all processes",
            origin=Origin(role=phase),
        )
        yield bucket
        start = 0
        for i, size in zip(values, sizes, strict=True):
            into = None if i.into is None or self._accumulates(i) else self.all.get(i.into, i.into)
            op, name = Reduced(start, i.spec), self.all[i.name]
            yield replace(i, name=name, op=op, inputs=(bucket.name,), phase=phase, into=into)
            start += size

    def _rounds(self, phase: str) -> dict[str, int]:
        """How many reductions of the phase come before each of its instructions."""
        found = rounds(self.old, phase, delay=lambda name: name in self.whole)
        if phase in self.repeated and any(found.values()):
            raise InternalError(
                f"the phase {phase!r} goes by columns, and has to wait for others in it"
            )
        return found


def _is_linear(expression: sympy.Expr) -> bool:
    """Whether it is a sum of multiples of symbols."""
    terms = sympy.Add.make_args(expression)
    return all(term.as_coeff_Mul()[1].is_Symbol for term in terms)
