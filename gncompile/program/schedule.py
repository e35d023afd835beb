"""The third representation: which instructions run in one kernel launch, decided before emission.

A :class:`Kernel` is a set of instructions of one phase that are computed together, tile by tile, so that
what only they use never reaches memory. A :class:`Launch` is one or more kernels of one kind that do not
depend on each other. A schedule is the launches of a phase in order. Grammar::

    launch ::= kind kernel {"+" kernel}
    kernel ::= product {pointwise}            a matrix product and what is done to its tiles
            |  convolution {pointwise}        a convolution or its adjoint, and what is done to its tiles
            |  patches moment                 the moment of what windows see in a grid
            |  pointwise {pointwise}          elementwise work on tensors of one shape
            |  {pointwise} reduction          elementwise work, summed over all, over rows or over columns
            |  symmetric product ⊙ moment     the KFRA step (Wᵀ M W) ⊙ E[b bᵀ]
            |  sample {pointwise}             a categorical sample and what is done to its tiles
            |  instruction                    softmax, interpolation, decay, direction or refined inverse,
                                              gradient of a convolution; or left to torch

A draw of random numbers is elementwise work without operands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import sympy

from . import operations as ir
from . import specs
from .step_program import Instruction, StepProgram


class Kind(StrEnum):
    """What a kernel is an instance of: a template, or a torch statement."""

    GEMM = "gemm"
    SECOND_MOMENT = "second_moment"
    CROSS_MOMENT = "cross_moment"
    CONVOLUTION = "convolution"
    CONVOLUTION_GRADIENT = "convolution_gradient"
    PATCH_MOMENT = "patch_moment"
    CONGRUENCE = "congruence"
    ELEMENTWISE = "elementwise"
    REDUCTION = "reduction"
    SOFTMAX = "softmax"
    INTERPOLATION = "interpolation"
    CATEGORICAL = "categorical"
    DECAY = "decay"
    INVERSE = "inverse"
    PRECONDITION = "precondition"
    TORCH = "torch"


ALWAYS_GROUPED = (Kind.PRECONDITION, Kind.DECAY, Kind.INVERSE)
"""Kinds whose template has one form, which takes any number of kernels."""


@dataclass(frozen=True)
class Kernel:
    """``instructions``, in program order, computed together; of their values ``stores`` reach memory."""

    kind: Kind
    instructions: tuple[Instruction, ...]
    stores: tuple[str, ...]

    def __hash__(self) -> int:
        return hash(self.stores)  # which no other kernel of a step has

    @property
    def root(self) -> Instruction:
        """The product or reduction that gives the kernel its kind; else its first instruction."""
        rooted = (i for i in self.instructions if not is_elementwise(i))
        return next(rooted, self.instructions[0])

    @property
    def elementwise(self) -> tuple[Instruction, ...]:
        """The elementwise instructions."""
        return tuple(i for i in self.instructions if is_elementwise(i))

    @property
    def views(self) -> tuple[str, ...]:
        """The views of what never reaches memory."""
        return tuple(i.name for i in self.instructions if isinstance(i.op, ir.VIEWS))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The values read from memory, each once, in order of first use."""
        own = {i.name for i in self.instructions}
        read = (name for i in self.instructions for name in i.inputs)
        return tuple(dict.fromkeys(name for name in read if name not in own))

    def __str__(self) -> str:
        inner = ", ".join(i.name for i in self.instructions if i.name not in self.stores)
        through = f" through {inner}" if inner else ""
        return f"{', '.join(self.stores)}{through} from {', '.join(self.inputs) or 'nothing'}"


@dataclass(frozen=True)
class Launch:
    """Independent kernels of one kind."""

    kind: Kind
    kernels: tuple[Kernel, ...]

    @property
    def name(self) -> str:
        """The first value it stores."""
        return self.kernels[0].stores[0]

    @property
    def grouped(self) -> bool:
        """Whether it takes its template's form for any number of kernels, not that for one alone."""
        return len(self.kernels) > 1 or self.kind in ALWAYS_GROUPED

    def __str__(self) -> str:
        return f"{self.kind}: " + " + ".join(f"({kernel})" for kernel in self.kernels)


@dataclass(frozen=True)
class Schedule:
    """The launches of every phase of a program, in order."""

    program: StepProgram
    phases: dict[str, tuple[Launch, ...]]

    @property
    def launches(self) -> tuple[Launch, ...]:
        """The launches of all phases, one after the other."""
        return tuple(launch for launches in self.phases.values() for launch in launches)

    @property
    def stores(self) -> set[str]:
        """The values that reach memory."""
        return {
            name for launch in self.launches for kernel in launch.kernels for name in kernel.stores
        }

    @property
    def sums(self) -> list[tuple[str, ...]]:
        """The values that one launch sums up, which are the elements of one vector."""
        return [
            tuple(kernel.root.name for kernel in launch.kernels)
            for launch in self.launches
            if launch.kind is Kind.REDUCTION and launch.grouped
        ]

    def draws(self, phase: str) -> list[str]:
        """The random numbers that kernels of a phase compute, which are numbered in this order."""
        return [i.name for i in self.program.phase(phase) if is_draw(i)]

    def to_text(self) -> str:
        """The schedule as text, phase by phase."""
        lines = []
        for phase, launches in self.phases.items():
            kernels = sum(len(launch.kernels) for launch in launches)
            lines.append(f"{phase}: {len(launches)} launches, {kernels} kernels")
            lines += [f"  {launch}" for launch in launches]
        return "\n".join(lines)


def is_draw(i: Instruction) -> bool:
    """Whether an instruction is a draw that kernels make; that of many processes comes from outside."""
    return isinstance(i.op, ir.Random) and not i.op.joined


def is_elementwise(i: Instruction) -> bool:
    """Whether an instruction is a formula at every place, with broadcasting, or a draw."""
    return isinstance(i.op, ir.Pointwise | ir.Average) or is_draw(i)


def formula(i: Instruction) -> tuple[sympy.Expr, tuple[sympy.Symbol, ...]]:
    """The expression of an elementwise instruction that is no draw, and the symbol of each input."""
    if isinstance(i.op, ir.Pointwise):
        return i.op.expression, i.op.symbols
    old, new, weight = symbols = sympy.symbols("old new weight", real=True)
    return new + weight * (old - new), symbols


@dataclass(frozen=True)
class Function:
    """What a kernel computes on its tiles: ``expressions`` of ``symbols``, one for every value it stores.

    ``symbols`` stand for the tile of the product or sample, if there is one, then for tiles of the
    ``operands``: values in memory and the kernel's own draws.
    """

    symbols: tuple[sympy.Symbol, ...]
    operands: tuple[str, ...]
    expressions: tuple[sympy.Expr, ...]

    @property
    def signature(self) -> tuple[sympy.Expr, ...]:
        """The expressions with symbols by position: equal for kernels that can share a function."""
        by_position = {s: sympy.Symbol(f"t{n}", real=True) for n, s in enumerate(self.symbols)}
        return tuple(e.xreplace(by_position) for e in self.expressions)


def function_of(kernel: Kernel) -> Function:
    """The kernel's elementwise instructions composed into one function of tiles.

    For a sum the first expression is the summand. For a product or sample that is stored as it is, the only
    expression is the symbol of its tile.
    """
    root = kernel.root
    product = not is_elementwise(root) and not isinstance(root.op, REDUCTIONS)
    values: dict[str, sympy.Expr] = {}
    operands: list[str] = []

    def value(name: str) -> sympy.Expr:
        if name not in values:
            operands.append(name)
            values[name] = sympy.Symbol(name, real=True)
        return values[name]

    tile = [root.name] if product else []
    values |= {name: sympy.Symbol(name, real=True) for name in tile}
    for i in kernel.elementwise:
        if isinstance(i.op, ir.Random):
            if i.name in kernel.stores:
                value(i.name)
            continue
        expression, symbols = formula(i)
        # An instruction may overwrite what it reads: its operands are taken before it has a value.
        read = {s: value(name) for s, name in zip(symbols, i.inputs, strict=True)}
        values[i.name] = expression.xreplace(read)
    results = [values[name] for name in kernel.stores if name in values]
    if isinstance(root.op, REDUCTIONS):
        results.insert(0, sympy.Mul(*(value(name) for name in root.inputs)))
    named = tuple(sympy.Symbol(name, real=True) for name in (*tile, *operands))
    return Function(named, tuple(operands), tuple(results))


SUMS = (ir.Total, ir.Dot, ir.Mean, ir.RowSum)
"""Reductions that elementwise work can join."""

REDUCTIONS = (*SUMS, ir.Trace)


def averaged_rows(i: Instruction, program: StepProgram) -> tuple[specs.Dim, ...]:
    """The dimension that a reduction divides by, if it is a mean."""
    if isinstance(i.op, ir.Mean) or (isinstance(i.op, ir.Total | ir.Dot) and i.op.mean):
        return program[i.inputs[0]].spec.shape[:1]
    return ()


def used_outside(program: StepProgram, names: Iterable[str]) -> set[str]:
    """Those of the values that something outside their own set reads, also through views, or a result."""
    own, results = set(names), set(program.results.values())
    return {
        name
        for name in own
        if name in results
        or program[name].into is not None
        or any(reader.name not in own for reader in program.readers[name])
    }
