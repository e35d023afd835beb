"""How values lie in memory, as far as the program decides it, and which of them a kernel's template can take.

Templates read matrices, and batches of them, by strides. Values of more dimensions are joined to those
(``triton_kernels/joining.py``) where the strides of all of a kernel's tensors let them. What cannot be
joined, a share of columns at places for instance, is left to torch: that is decided here, before anything is
emitted.

Sizes that a batch binds are large primes here, rows that memory may pad end where nothing else begins, and
a user's tensor of more than two dimensions lies anywhere. So what joins here joins for every batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import InternalError
from ..triton_kernels.joining import joined
from . import convolutions as grids
from . import operations as ir
from .implicit import grid_behind
from .schedule import Kind, is_elementwise
from .specs import COLUMNS, SAMPLES, Dim
from .step_program import Instruction, StepProgram

STAND_INS = dict(
    zip((*SAMPLES, COLUMNS), (1_000_003, 500_009, 250_007, 125_003, 62_501), strict=True)
)
"""For N, F, Q, L and S."""

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes and strides."""


def layout(program: StepProgram, name: str) -> Layout:
    """Sizes and strides of a value, views followed to the memory that they are views of."""
    i = program[name]
    sizes = sizes_of(i.spec.shape)
    if i.into is not None:
        return layout(program, i.into)
    if not isinstance(i.op, ir.VIEWS):
        return sizes, _own_strides(program, i, sizes)
    of, strides = layout(program, i.inputs[0])
    return sizes, _viewed(i, sizes, of, strides)


def sizes_of(shape: Sequence[Dim]) -> tuple[int, ...]:
    """A shape with the stand-ins for symbols."""
    return tuple(STAND_INS[d] if isinstance(d, str) else d for d in shape)


def _own_strides(program: StepProgram, i: Instruction, sizes: tuple[int, ...]) -> tuple[int, ...]:
    is_users = isinstance(i.op, ir.Leaf) and i.op.kind in ("parameter", "constant")
    padded = i.name not in program.packed
    strides: list[int] = []
    step = 1
    for size in reversed(sizes):
        strides.insert(0, step)
        step *= size
        if is_users or (padded and len(strides) == 1 and size > 1):
            step += 1  # no multiple of what stands behind it
    return tuple(strides)


def _viewed(
    i: Instruction, sizes: tuple[int, ...], of: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, ...]:
    """The strides of a view."""
    match i.op:
        case ir.Transpose():
            return (*strides[:-2], strides[-1], strides[-2])
        case ir.Part(which):
            return strides if which == "weight" else strides[:1]
        case ir.Element():
            return ()
        case ir.Share() | ir.AsMatrix():
            return strides
        case ir.SampleMatrix(size):
            return (*strides[:-1], size * strides[-1], strides[-1])
        case ir.Unflatten(parts, axis):
            at = len(strides) + axis
            inner = tuple(strides[at] * math.prod(parts[k + 1 :]) for k in range(len(parts)))
            return (*strides[:at], *inner, *strides[at + 1 :])
        case ir.Flatten(count, axis):
            end = len(strides) + axis + 1
            first = end - count
            _, (short,) = joined(of[first:end], [strides[first:end]], 1)
            if len(short) > 1:
                raise InternalError(f"{i} joins dimensions that are apart in memory")
            return (*strides[:first], *short, *strides[end:])
        case ir.Permute(order):
            kept = len(strides) - len(order)
            return (*strides[:kept], *(strides[kept + k] for k in order))
        case ir.FeaturesLast():
            return (*strides[1:], strides[0])
    raise InternalError(f"no strides for the view {i}")


def can_take(program: StepProgram, kind: Kind, members: Sequence[Instruction]) -> bool:
    """Whether a template reads the tensors of these instructions, their results included, as matrices.

    The rule for every template, and the only one: of what it refuses no template is given anything.
    """
    root = next((m for m in members if not is_elementwise(m)), members[0])
    shape = root.spec.shape
    tiles = [n for m in members if is_elementwise(m) for n in (*m.inputs, m.name)]
    # The items of a batch would all have equal draws.
    most = 2 if any(isinstance(m.op, ir.Random) for m in members) else 3
    match kind:
        case Kind.TORCH:
            return True
        case Kind.ELEMENTWISE:
            return _join(program, tiles, shape, most)
        case Kind.REDUCTION:
            of = program[root.inputs[0]].spec.shape
            dense = len(of) <= 2 or _is_dense(program, root.name)
            return dense and _join(program, [*root.inputs, *tiles], of, 2, KEPT.get(type(root.op)))
        case Kind.SOFTMAX:
            rows = all(has_rows(program, name) for name in (root.inputs[0], root.name))
            return rows and (isinstance(root.op, ir.Softmax) or _is_dense(program, root.name))
        case Kind.INTERPOLATION:  # of a grid that lies anywhere
            return all(has_rows(program, name) for name in (*root.inputs[1:], root.name))
        case Kind.SECOND_MOMENT | Kind.CROSS_MOMENT:
            return all(has_rows(program, name) for name in root.inputs)
        case Kind.CONVOLUTION:
            assert isinstance(root.op, grids.Convolve | grids.ConvolveAdjoint)
            draws = most < 3 and root.op.geometry.groups > 1  # a group is an item
            return not draws and _join(program, [root.inputs[0], root.name, *tiles], shape, 2, LAST)
        case Kind.CONVOLUTION_GRADIENT:
            return all(len(program[name].spec.shape) == 2 for name in root.inputs)
        case Kind.PATCH_MOMENT:
            seen = grid_behind(program, members[-1].inputs[0])
            return seen is not None and has_rows(program, seen[0])
        case Kind.GEMM if not (isinstance(root.op, ir.MatMul) and root.op.transpose_a):
            # Every other operand of an Affine is on the left; beside its rows stand K elements, not N.
            left = root.inputs[: len(root.inputs) // 2 * 2 : 2]
            return _join(program, [*left, root.name, *tiles], shape, most, LAST)
    return all(len(program[n].spec.shape) <= 2 for m in members for n in (*m.inputs, m.name))


FIRST, LAST = slice(0, 1), slice(-1, None)
KEPT = {ir.Mean: FIRST, ir.RowSum: LAST}
"""The dimension that a sum is over, which is joined with no other."""


def has_rows(program: StepProgram, name: str) -> bool:
    """Whether all dimensions but the last are rows of one matrix."""
    return _join(program, [name], program[name].spec.shape, 2, LAST)


def in_grid_only(program: StepProgram, name: str) -> bool:
    """Whether rows are those of a batch of grids, channels at places, and of no matrix."""
    channels = isinstance(program[name].op, ir.Transpose) and grid_behind(program, name)
    return bool(channels) and not has_rows(program, name)


def _is_dense(program: StepProgram, name: str) -> bool:
    """Whether the elements of a value lie side by side."""
    sizes, strides = layout(program, name)
    left, (step,) = joined(sizes, [strides], 1)
    return len(left) == 0 or (len(left) == 1 and step == [1])


def _join(
    program: StepProgram,
    names: Sequence[str],
    shape: Sequence[Dim],
    most: int,
    kept: slice | None = None,
) -> bool:
    """Whether these values, broadcast to a shape, have ``most`` dimensions at most once they are joined."""
    sizes = sizes_of(shape)
    if len(sizes) <= 2:
        return True
    own = range(len(sizes))[kept] if kept else range(0)
    free = [d for d in range(len(sizes)) if d not in own]
    steps = [_broadcast(layout(program, name), len(sizes)) for name in dict.fromkeys(names)]
    left, _ = joined([sizes[d] for d in free], [[s[d] for d in free] for s in steps], 2 - len(own))
    return len(left) + len(own) <= most


def _broadcast(of: Layout, rank: int) -> tuple[int, ...]:
    """Strides of as many dimensions, 0 where a value has one element or none."""
    sizes, strides = of
    own = tuple(0 if size == 1 else step for size, step in zip(sizes, strides, strict=True))
    return (0,) * (rank - len(own)) + own
