"""Each operation of a step program as torch statements that write into a given tensor.

A writer gets the instruction, the name of the tensor to write, and the names and specs of its operands. What
it needs besides, it asks of the :class:`File` it is written into. Structured matrices are stored as their
scalar, their diagonal, or in full, so most writers go by structure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ..functions.interpolate import taps
from ..program import lookups
from ..program import operations as ir
from ..program.specs import Dim, Spec, Structure
from ..program.step_program import Instruction
from .layout import WIDTH, filled
from .literals import dimension, literal, plain_name, quoted

Options = Mapping[str, int | str | None]
"""How an operation is computed where there is a choice, as keywords: ``{"block": 128}``; empty is default."""


class File(Protocol):
    """What a writer may ask of the file under way."""

    def options(self, i: Instruction) -> Options:
        """How this instruction is to be computed."""

    def owned(self, names: tuple[str, ...]) -> bool:
        """Whether these have whole buffers or states to themselves, all padded alike or none."""

    def shape(self, name: str) -> tuple[Dim, ...]:
        """The shape of a value."""

    def flat(self, name: str) -> str:
        """The value as a vector."""

    def scratch_name(self, number: int, shape: tuple[Dim, ...]) -> str:
        """The ``number``-th intermediate tensor of a shape."""

    def index(self, value: str, role: str, values: list[int]) -> str:
        """A constant index tensor of a value."""


Writer = Callable[[File, Instruction, str, list[str], list[Spec]], list[str]]
WRITERS: dict[type, Writer] = {}
"""How each operation but :class:`~gncompile.program.step_program.Pointwise` is written."""


def writes(*ops: type) -> Callable[[Writer], Writer]:
    """Declare how operations are written, as a decorator."""

    def register(writer: Writer) -> Writer:
        for op in ops:
            WRITERS[op] = writer
        return writer

    return register


@writes(ir.Affine)
def _affine(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    bias = len(v) % 2 == 1
    if len(specs[0].shape) > 2:
        v = [
            f"{x}.flatten(0, -2)" if len(s.shape) > 2 else x for x, s in zip(v, specs, strict=True)
        ]
        out = f"{out}.flatten(0, -2)"
    if w.options(i).get("bias") == "after":
        return [f"torch.mm({v[0]}, {v[1]}.T, out={out})", f"{out}.add_({v[2]})"]
    first = f"torch.addmm({v[-1]}, " if bias else "torch.mm("
    lines = [f"{first}{v[0]}, {v[1]}.T, out={out})"]
    return lines + ([f"{out}.addmm_({v[2]}, {v[3]}.T)"] if len(v) >= 4 else [])


@writes(ir.MatMul)
def _matmul(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.MatMul)
    a = f"{v[0]}.mT" if i.op.transpose_a else v[0]
    b = f"{v[1]}.mT" if i.op.transpose_b else v[1]
    plain = all(len(s.shape) == 2 for s in specs)
    return [f"torch.{'mm' if plain else 'matmul'}({a}, {b}, out={out})"]


@writes(ir.Moment)
def _moment(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.Moment)
    name = "second_moment" if len(v) == 1 else "cross_moment"
    words = _keywords(w.options(i))
    if len(specs[0].of_a_sample) > 1:
        words += f", samples={dimension(specs[0].samples)}"
    if i.op.coordinate != 1.0:
        words += f", coordinate={literal(i.op.coordinate)}"
    return [f"linalg.{name}({', '.join(v)}, {literal(i.op.homogeneous)}, out={out}{words})"]


@writes(ir.PlaceMoments)
def _place_moments(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    samples = dimension(specs[0].samples)
    return [f"torch.bmm({v[0]}.mT, {v[1]}, out={out})", f"{out}.div_({samples})"]


@writes(ir.Mean)
def _mean(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"torch.mean({v[0]}, dim=0, out={out})"]


@writes(ir.Total)
def _total(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.Total)
    lines = [f"torch.sum({v[0]}, dim=None, out={out})"]
    return lines + ([f"{out}.div_({dimension(specs[0].shape[0])})"] if i.op.mean else [])


@writes(ir.RowSum)
def _row_sum(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"torch.sum({v[0]}, dim=-1, keepdim=True, out={out})"]


@writes(ir.Dot)
def _dot(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.Dot)
    if not i.op.mean and w.owned(i.inputs):
        return [f"torch.dot({w.flat(v[0])}, {w.flat(v[1])}, out={out})"]
    return [f"linalg.dot({v[0]}, {v[1]}, {literal(i.op.mean)}, out={out})"]


@writes(ir.Softmax)
def _softmax(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"torch.softmax({v[0]}, dim=-1, out={out})"]


@writes(ir.LogSumExp)
def _log_sum_exp(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"torch.logsumexp({v[0]}, dim=-1, keepdim=True, out={out})"]


@writes(ir.SampleCategorical)
def _sample(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"linalg.sample_categorical({v[0]}, {v[1]}, out={out})"]


@writes(ir.Random)
def _random(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.Random)
    rows = f', "{dimension(i.spec.samples)}"' if i.op.joined else ""
    return [f"memory.random({quoted(i.op.kind)}, {out}{rows})"]


@writes(ir.Columns)
def _columns(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.Columns)
    p = v[1] if len(v) > 1 else "None"
    start = f"start - {i.op.first}" if i.op.first else "start"
    return [f"linalg.root_columns({v[0]}, {p}, {start}, out={out})"]


@writes(ir.Stack)
def _stack(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return filled("torch.stack([", v, f"], out={out})", WIDTH - 8)


@writes(ir.Zeros)
def _zeros(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"{out}.zero_()"]


@writes(lookups.Lookup, lookups.LookupGradient, lookups.Counts, lookups.OneHot)
def _lookup(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    match i.op:
        case lookups.Lookup(int(padding)):
            return [f"lookups.lookup({v[0]}, {v[1]}, {literal(padding)}, out={out})"]
        case lookups.LookupGradient(_, padding):
            return [f"lookups.lookup_gradient({v[0]}, {v[1]}, {literal(padding)}, out={out})"]
        case lookups.Counts(_, padding):
            return [f"lookups.counts({v[0]}, {literal(padding)}, out={out})"]
    name = "lookup" if isinstance(i.op, lookups.Lookup) else "one_hot"
    return [f"lookups.{name}({', '.join(v)}, out={out})"]


@writes(ir.Interpolate)
def _interpolate(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    read = f"{v[0]}, [{', '.join(v[1:])}], {how_interpolated(i)}"
    return [f"interpolation.interpolate({read}, out={out})"]


def how_interpolated(i: Instruction, by_polynomials: bool = False) -> str:
    """The arguments that say how a grid is read between its points: the kernel by name, or its weights."""
    assert isinstance(i.op, ir.Interpolate)
    of = i.op.of
    weights = tuple(taps(of.kernel, order) for order in of.order)
    corners = "" if of.corners else ", corners=False"
    kernel = literal(weights) if by_polynomials else quoted(of.kernel)
    return f"{kernel}, {quoted(of.padding)}, {literal(of.order)}{corners}"


@writes(ir.Repeat)
def _repeat(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"{out}.copy_({v[0]})"]


@writes(ir.DiagonalMoment)
def _diagonal_moment(
    w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]
) -> list[str]:
    return [f"linalg.diagonal_moment({v[0]}, {dimension(specs[0].samples)}, out={out})"]


@writes(ir.TakeDiagonal)
def _take_diagonal(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"{out}.copy_({v[0]}.diagonal())"]


@writes(ir.PlaceBlocks)
def _place_blocks(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.PlaceBlocks)
    if len(v) > 1:
        return [f"linalg.weighted_blocks({v[0]}, {v[1]}, out={out})"]
    return [f"linalg.place_blocks({v[0]}, {literal(i.op.places)}, {literal(i.op.last)}, out={out})"]


@writes(ir.PlaceDots)
def _place_dots(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"linalg.place_dots({v[0]}, {v[1]}, out={out})"]


@writes(ir.SampleDiagonal)
def _diagonal(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"{out}.zero_()", f"{out}.diagonal(dim1=-2, dim2=-1).copy_({v[0]})"]


@writes(ir.SampleOuter)
def _outer(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"torch.mul({v[0]}[:, :, None], {v[1]}[:, None, :], out={out})"]


@writes(ir.SampleRoot)
def _sample_root(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"linalg.sample_roots({v[0]}, out={out})"]


@writes(ir.SampleMultiply)
def _sample_multiply(
    w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]
) -> list[str]:
    return [f"torch.bmm({v[0]}, {v[1]}.unsqueeze(-1), out={out}.unsqueeze(-1))"]


@writes(ir.ScaleSides)
def _scale_sides(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.ScaleSides)
    if not i.op.left:
        return [f"torch.mul({v[0]}, {v[1]}[:, None, :], out={out})"]
    lines = [f"torch.mul({v[0]}, {v[1]}[:, :, None], out={out})"]
    return lines + ([f"{out}.mul_({v[2]}[:, None, :])"] if i.op.right else [])


@writes(ir.Multiply)
def _multiply(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    match specs[0].structure:
        case Structure.SCALED_IDENTITY:
            return [f"torch.mul({v[1]}, {v[0]}, out={out})"]
        case Structure.DIAGONAL:
            return [f"torch.mul({v[1]}, {v[0]}[:, None], out={out})"]
    return [f"torch.mm({v[0]}, {v[1]}, out={out})"]


@writes(ir.SymmetricProduct)
def _symmetric(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"linalg.symmetric_product({v[0]}, {v[1]}, out={out}{_keywords(w.options(i))})"]


@writes(ir.Hadamard)
def _hadamard(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"torch.mul({v[0]}, {v[1]}, out={out})"]


@writes(ir.AddDiagonal)
def _add_diagonal(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"{out}.copy_({v[0]})", f"{out}.diagonal().add_({v[1]})"]


@writes(ir.Densify)
def _densify(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"{out}.zero_()", f"{out}.diagonal().copy_({v[0]})"]


@writes(ir.Trace)
def _trace(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    match specs[0].structure:
        case Structure.SCALED_IDENTITY:
            return [f"torch.mul({v[0]}, {literal(specs[0].size)}, out={out})"]
        case Structure.DIAGONAL:
            return [f"torch.sum({v[0]}, dim=None, out={out})"]
    return [f"torch.sum({v[0]}.diagonal(), dim=None, out={out})"]


@writes(ir.PlusTranspose)
def _plus_transpose(
    w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]
) -> list[str]:
    return [f"torch.add({v[0]}, {v[0]}.mT, out={out})"]


@writes(ir.Decay)
def _decay(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.Decay)
    lines = [f"{out}.copy_({v[0]})"]
    if i.op.weight:
        lines.append(
            f"{out}[:, : {dimension(specs[1].shape[1])}].add_({v[1]}, alpha={literal(i.op.weight)})"
        )
    return lines + (
        [f"{out}[:, -1].add_({v[2]}, alpha={literal(i.op.bias)})"] if len(v) > 2 else []
    )


@writes(ir.Average)
def _average(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"torch.lerp({v[1]}, {v[0]}, {v[2]}, out={out})"]


@writes(ir.DampedInverse)
def _damped_inverse(
    w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]
) -> list[str]:
    return [f"linalg.damped_inverse({v[0]}, {v[1]}, out={out}{_keywords(w.options(i))})"]


@writes(ir.Eigen)
def _eigen(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return [f"linalg.eigen({v[0]}, out={out})"]


@writes(ir.Precondition)
def _precondition(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    scratch = w.scratch_name(0, i.spec.shape)
    return [f"linalg.precondition({', '.join(v)}, {scratch}, out={out})"]


@writes(ir.PreconditionEigen)
def _precondition_eigen(
    w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]
) -> list[str]:
    return [f"linalg.precondition_eigen({', '.join(v)}, out={out})"]


@writes(ir.StepSizes)
def _step_sizes(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, ir.StepSizes)
    return step_sizes("linalg", i.op, v, out)


def step_sizes(module: str, op: ir.StepSizes, terms: list[str], out: str) -> list[str]:
    """The step sizes, of tensors or of numbers by the module that computes them."""
    how = ", ".join(map(literal, (op.groups, op.momentum, op.growth, op.cap)))
    return filled(f"{module}.step_sizes([", terms, f"], {how}, out={out})", WIDTH - 8)


def reduced(w: File, i: Instruction, v: list[str]) -> str:
    """A sum over tensors as a number of the host."""
    match i.op:
        case ir.Dot() if w.owned(i.inputs):
            total = f"torch.dot({w.flat(v[0])}, {w.flat(v[1])}).item()"
        case ir.Dot():
            total = f"scalars.dot({v[0]}, {v[1]})"
        case ir.Trace() if len(w.shape(i.inputs[0])) == 2:
            total = f"{v[0]}.diagonal().sum().item()"
        case _:
            total = f"{v[0]}.sum().item()"
    mean = getattr(i.op, "mean", False)
    return f"{total} / {dimension(w.shape(i.inputs[0])[0])}" if mean else total


def _keywords(options: Options) -> str:
    """``, block=128`` to end a call with."""
    return "".join(f", {keyword}" for keyword in keywords(options))


def keywords(options: Options) -> list[str]:
    """``block=128`` and so on: options as arguments of a call."""
    return [f"{plain_name(word)}={literal(value)}" for word, value in options.items()]


def compact(values: list[int]) -> str:
    """A list of integers as a Python expression: ranges where consecutive."""
    if values and values == list(range(values[0], values[0] + len(values))):
        return f"range({values[0]}, {values[0] + len(values)})"
    return literal(values)
