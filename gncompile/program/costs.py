"""What a step costs: FLOPs and bytes of every instruction, summed by phase, layer, and part of a layer.

The model counts arithmetic as the mathematics needs it: a symmetric product counts one triangle, a diagonal
matrix counts its diagonal, an elementwise expression counts its operations, a transcendental function as
one. Bytes are memory traffic: every operand read once, every result written once. Views cost nothing.
Small symmetric products are computed in full by the torch backend, so there the count is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from sympy import Expr

from . import collectives, exact, specs
from . import convolutions as grids
from . import operations as ir
from .buffers import plan_buffers
from .phases import Repeat
from .schedule import Schedule
from .specs import Spec
from .step_program import Instruction, StepProgram

EIGEN_FLOPS = 9
"""FLOPs per d³ of a symmetric eigendecomposition with vectors (Golub and Van Loan, §8.3)."""

NOMINAL = 1000
"""Samples of the batch that a search for the right size starts from."""


@dataclass(frozen=True)
class Cost:
    """Arithmetic and memory traffic; adds up."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times, self.bytes * times)


@lru_cache(maxsize=4096)  # the layers of a network have most of their expressions in common
def _operations(expression: Expr) -> int:
    return int(expression.count_ops())


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, start=Cost())


@dataclass(frozen=True)
class CostModel:
    """The cost of a program for ``batch`` samples.

    ``rows`` gives F and Q, the samples of the factors and of the quadratic model, if they are fewer; KFLR's
    columns go through in chunks of ``columns``; ``itemsize`` is the bytes of one number.
    """

    program: StepProgram
    batch: int
    itemsize: int = 4
    rows: Mapping[str, int] = field(default_factory=dict)
    columns: int = 1

    @cached_property  # asked for every dimension of every operand
    def dims(self) -> dict[str, int]:
        """The values of the symbolic dimensions."""
        return {
            **dict.fromkeys(specs.SAMPLES, self.batch),
            **self.rows,
            specs.COLUMNS: self.columns,
        }

    def elements(self, spec: Spec) -> int:
        """Stored numbers of a value."""
        return math.prod(self._sizes(spec))

    def of(self, instruction: Instruction) -> Cost:
        """Cost of one execution of an instruction."""
        if isinstance(instruction.op, (ir.Leaf, *ir.VIEWS)):
            return Cost()
        inputs = [self.program[name].spec for name in instruction.inputs]
        if isinstance(instruction.op, ir.Trace):
            diagonal = self._flops(instruction, inputs)
            return Cost(diagonal, (diagonal + 1) * self.itemsize)
        moved = sum(self.elements(self.program[n].spec) for n in dict.fromkeys(instruction.inputs))
        moved += self.elements(instruction.spec)
        return Cost(self._flops(instruction, inputs), moved * self.itemsize)

    def runs(self, phase: str) -> int:
        """How often a step runs a phase when it runs it at all, at most.

        That is once for every chunk of columns or draw, or for every curvature product.
        """
        match self.program.record(phase).repeat:
            case Repeat.COLUMNS:
                return math.ceil(self.program.columns / self.columns)
            case Repeat.PRODUCTS:
                return self.program.products
        return 1

    def phase(self, name: str) -> Cost:
        """Cost of a phase, all its runs together."""
        return total(map(self.of, self.program.phase(name))) * self.runs(name)

    def by_phase(self) -> dict[str, Cost]:
        """Cost of every phase in order."""
        return {name: self.phase(name) for name in self.program.phases}

    def sent(self, phase: str) -> tuple[int, int]:
        """What a process hands over to the others in a phase: bytes, and in how many messages.

        A message is a vector that is added to those of all processes, or put beside them, whatever its
        transport makes of that: a ring of R sends ``2 (R − 1)/R``, or ``R − 1``, times as much from each.
        """
        sizes = []
        for i in self.program.phase(phase):
            if isinstance(i.op, collectives.AllReduce):
                sizes.append(self.elements(i.spec))
            elif isinstance(i.op, collectives.AllGather):
                sizes.append(i.op.room or i.op.total)
        return sum(sizes) * self.itemsize, len(sizes)

    def by_part(self) -> dict[tuple[str, str], Cost]:
        """Cost by layer and role of the instructions' origins; layer ``""`` is shared work."""
        costs: dict[tuple[str, str], Cost] = {}
        for i in self.program:
            owner = i.origin.layer, i.origin.role
            if not isinstance(i.op, ir.Leaf):
                costs[owner] = costs.get(owner, Cost()) + self.of(i) * self.runs(i.phase)
        return costs

    def buffer_bytes(self, buffers: Mapping[str, str]) -> dict[str, int]:
        """Bytes of every work buffer of a plan, batch included; scratch space comes on top.

        ``buffers`` is what :func:`~gncompile.program.buffers.plan_buffers` decides.
        """
        batch = [leaf.name for kind in ("input", "target") for leaf in self.program.leaves(kind)]
        held = dict.fromkeys([*batch, *buffers.values()])
        return {name: self.elements(self.program[name].spec) * self.itemsize for name in held}

    def work_bytes(self, order: Schedule | None = None) -> int:
        """Bytes of all work buffers, as a step holds them at most; ``order`` as for ``plan_buffers``."""
        return sum(self.buffer_bytes(plan_buffers(self.program, order)).values())

    def state_bytes(self) -> dict[str, int]:
        """Bytes of every tensor that survives a step, parameters excluded."""
        return {
            key: self.elements(state.spec) * self.itemsize
            for key, state in self.program.states.items()
        }

    def _sizes(self, spec: Spec) -> list[int]:
        return [self.dims[d] if isinstance(d, str) else d for d in spec.shape]

    # --- arithmetic of each operation -----------------------------------------------------------------

    def _flops(self, i: Instruction, inputs: list[Spec]) -> int:
        sizes = [self._sizes(spec) for spec in inputs]
        out = self.elements(i.spec)
        match i.op:
            case ir.Pointwise(expression):
                return out * _operations(expression)
            case ir.Affine():
                inner = sum(s[-1] for s in sizes[1:4:2])
                return out * (2 * inner + len(inputs) % 2)
            case ir.MatMul(transpose_a):
                return 2 * out * sizes[0][-2 if transpose_a else -1]
            case ir.Moment(homogeneous):
                return _moment(sizes, homogeneous)
            case ir.PlaceMoments():
                return 2 * out * sizes[0][1]
            case ir.SymmetricProduct():
                rows, d = sizes[0]
                return rows * d * (d + 1)
            case ir.Interpolate():
                return 2 * out * i.op.points
            case grids.Windowed():
                return i.op.flops(sizes, out)
            case exact.JacobianOp():
                return _of_rows(i.op, sizes, out)
            case ir.Multiply():
                return out if inputs[0].is_thin else 2 * out * inputs[0].size
        return self._flops_of_matrix(i, inputs, sizes, out)

    def _flops_of_matrix(
        self, i: Instruction, inputs: list[Spec], sizes: list[list[int]], out: int
    ) -> int:
        match i.op:
            case ir.DampedInverse():
                return 2 * out if inputs[0].is_thin else inputs[0].size ** 3
            case ir.Eigen():
                return 0 if inputs[0].is_thin else EIGEN_FLOPS * inputs[0].size ** 3
            case collectives.CongruenceRows(_, count):
                inner = sizes[0][0]
                return 2 * out * inner + inner * count * (1 if inputs[1].is_thin else 2 * inner)
            case ir.Precondition():
                return sum(out if f.is_thin else 2 * out * f.size for f in inputs[1:])
            case ir.PreconditionEigen():
                factors = [f for f in inputs[1:3] if not f.is_thin]
                turned = [4 * out * self._sizes(f)[-1] for f in factors]
                return sum(turned) + 3 * out
            case ir.Trace() | ir.AddDiagonal():
                return 1 if inputs[0].shape == () else inputs[0].size
            case ir.Mean() | ir.Total() | ir.RowSum():
                return math.prod(sizes[0])
            case ir.Dot() | ir.PlaceDots():
                return 2 * math.prod(sizes[0])
            case ir.PlaceBlocks(places):
                whole = math.prod(sizes[0])
                return 2 * whole if len(inputs) > 1 else whole // (places if sizes[0][1:] else 1)
            case ir.Scatter():
                return math.prod(sizes[0])
            case ir.SampleRoot():
                return EIGEN_FLOPS * out * sizes[0][-1]
            case ir.SampleMultiply():
                return 2 * math.prod(sizes[0])
        return out * _PER_ELEMENT.get(type(i.op), 0)


_PER_ELEMENT: Mapping[type, int] = {
    ir.Hadamard: 1,
    ir.PlusTranspose: 1,
    ir.SampleOuter: 1,
    ir.ScaleSides: 2,
    ir.Columns: 1,
    ir.Decay: 2,
    ir.Average: 3,
    ir.Softmax: 5,
    ir.LogSumExp: 4,
    ir.SampleCategorical: 2,
    ir.Random: 1,
    ir.StepSizes: 20,
    collectives.AllReduce: 1,
}
"""FLOPs an element of the result; operations that only move numbers are not here."""


def _moment(sizes: list[list[int]], homogeneous: bool) -> int:
    rows, d = math.prod(sizes[0][:-1]), sizes[0][-1]
    appended = rows * d if homogeneous else 0
    if len(sizes) == 1:
        return rows * d * (d + 1) + appended
    return 2 * rows * d * sizes[1][-1] + appended


def _of_rows(op: exact.JacobianOp, sizes: list[list[int]], out: int) -> int:
    """What operations on the Jacobian's rows take; of a Gram matrix the cheaper of the two ways to it."""
    match op:
        case exact.Rows():
            return 2 * out * sizes[0][-2]
        case exact.RowGram(bias):
            n = math.isqrt(out)
            sides = [s for s in sizes[1:] if len(s) > 2][: None if bias else 2]
            places = sum(s[-2] for s in sizes[1 : len(sizes) - int(op.adds) : 1 if bias else 2])
            if bias:
                return n * (n + 1) * sides[0][-1]
            left, right = (s[-1] for s in sides)
            shared = (sizes[1][-3] if len(sizes[1]) == 4 else sizes[2][-3]) ** 2
            pairs = places**2 * (out * (left + 1) + shared * right)
            rows = n * (n + 1) * left * right + (2 * n * places * left * right if places > 1 else 0)
            return pairs if places == 1 else min(pairs, rows)
        case exact.RowSquares(vector):
            rows = math.prod(max(sizes, key=len)[:2])
            return rows * out * (2 if vector else 2 * sum(s[-2] for s in sizes[::2]) + 2)
        case exact.Joined():
            return 0
        case exact.RootSolve(diagonal):
            samples, outputs = sizes[1]
            return out if diagonal else EIGEN_FLOPS * samples * outputs**3
        case exact.RootRest():
            return 2 * math.prod(sizes[0])
        case exact.PrimalSolve():
            return sizes[0][0] ** 3 // 3
    return out**3 // 3


def columns_within(program: StepProgram, batch: int, itemsize: int, budget: int) -> int:
    """How many of KFLR's columns fit into ``budget`` bytes at once; at least one, and all where they meet."""
    if program.columns_meet:
        return program.columns
    column = column_bytes(program, batch, itemsize)
    return max(1, min(program.columns, budget // column)) if column else 1


def samples_within(
    program: StepProgram,
    buffers: Mapping[str, str],
    rows: Callable[[int], Mapping[str, int]],
    itemsize: int,
    budget: int,
) -> int:
    """The size of a batch whose work buffers take up about ``budget`` bytes; at least one."""
    batch = NOMINAL
    for _ in range(3):  # in proportion to the batch, but for the least sizes of F and Q
        held = CostModel(program, batch, itemsize, rows(batch)).buffer_bytes(buffers)
        batch = max(1, batch * budget // sum(held.values()))
    return batch


def column_bytes(program: StepProgram, batch: int, itemsize: int, columns: int = 1) -> int:
    """Bytes of all values that are made for one column of ``batch`` samples, or several at once."""
    one = CostModel(program, batch, itemsize, columns=columns)
    held = [i for i in program if i.spec.has_columns and not isinstance(i.op, ir.VIEWS)]
    return sum(one.elements(i.spec) for i in held) * itemsize
