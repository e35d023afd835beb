"""Shape and structure inference for the operations of a step program."""

from __future__ import annotations

import math
from functools import reduce

from ..errors import InternalError
from . import collectives, exact, lookups
from .convolutions import FeaturesLast, Windowed
from .interpolation import Interpolate
from .operations import (
    AddDiagonal,
    Affine,
    AsMatrix,
    Average,
    Columns,
    DampedInverse,
    Decay,
    Densify,
    DiagonalMoment,
    Dot,
    Eigen,
    Element,
    Flatten,
    Gather,
    Hadamard,
    LogSumExp,
    MatMul,
    Mean,
    Moment,
    Multiply,
    Op,
    Part,
    Permute,
    PlaceBlocks,
    PlaceDots,
    PlaceMoments,
    PlusTranspose,
    Pointwise,
    Precondition,
    PreconditionEigen,
    Random,
    Repeat,
    RowSum,
    SampleCategorical,
    SampleDiagonal,
    SampleMatrix,
    SampleMultiply,
    SampleOuter,
    SampleRoot,
    ScaleSides,
    Scatter,
    Share,
    Softmax,
    Stack,
    StepSizes,
    SymmetricProduct,
    TakeDiagonal,
    Total,
    Trace,
    Transpose,
    Unflatten,
    Zeros,
)
from .specs import COLUMNS, SAMPLES, Dim, Spec, Structure, matrix

SCALAR = Spec(())


def infer(op: Op, inputs: list[Spec]) -> Spec:
    """The spec of ``op(inputs)``."""
    shapes = [spec.shape for spec in inputs]
    match op:
        case Affine():
            return Spec((*shapes[0][:-1], shapes[1][0]))
        case MatMul(ta, tb):
            rows = shapes[0][-1] if ta else shapes[0][-2]
            cols = shapes[1][-2] if tb else shapes[1][-1]
            return Spec((*broadcast(shapes[0][:-2], shapes[1][:-2]), rows, cols))
        case Pointwise():
            return _pointwise(inputs)
        case Gather(index):
            return Spec((*shapes[0][:-1], len(index)))
        case Scatter(_, size, axis):
            shape = list(shapes[0])
            shape[axis] = size
            return Spec(tuple(shape))
        case Moment(homogeneous):
            extra = int(homogeneous)
            if len(inputs) == 1:
                return matrix(Structure.SYMMETRIC, _int(shapes[0][-1]) + extra)
            return Spec((shapes[0][-1], _int(shapes[1][-1]) + extra))
        case PlaceMoments():
            return Spec((shapes[0][0], shapes[0][-1], shapes[1][-1]))
        case Mean(whole):
            if whole:
                return matrix(Structure.SYMMETRIC, _int(shapes[0][-1]))
            return Spec(shapes[0][1:])
        case Total() | Dot() | Trace():
            return SCALAR
        case RowSum() | LogSumExp():
            return Spec((*shapes[0][:-1], 1))
        case Multiply():
            return Spec(shapes[1])
        case SymmetricProduct():
            return matrix(Structure.SYMMETRIC, _int(shapes[0][-1]))
        case Hadamard():
            both = all(spec.structure is Structure.SYMMETRIC for spec in inputs)
            return inputs[0] if both else Spec(shapes[0])
        case AddDiagonal():
            return inputs[0]
        case Densify():
            return matrix(Structure.SYMMETRIC, inputs[0].size)
        case Transpose():
            return Spec((*shapes[0][:-2], shapes[0][-1], shapes[0][-2]))
        case lookups.Lookup():
            return Spec((*shapes[1], shapes[0][-1]))
        case lookups.LookupGradient(classes):
            return Spec((classes, shapes[1][-1]))
        case lookups.Counts(classes):
            return Spec((classes,))
        case lookups.OneHot(classes):
            return Spec((*shapes[0], classes))
        case Interpolate():
            return Spec(shapes[1])
        case Repeat(shape):
            return Spec(shape)
        case DiagonalMoment() | TakeDiagonal():
            return matrix(Structure.DIAGONAL, _int(shapes[0][-1]))
        case PlaceBlocks(places):
            return matrix(inputs[0].structure, inputs[0].size // places)
        case PlaceDots(places):
            return matrix(Structure.SYMMETRIC, places)
        case PlusTranspose():
            return matrix(Structure.SYMMETRIC, _int(shapes[0][-1]))
        case AsMatrix(structure, size):
            spec = matrix(structure, size)
            if spec.shape != shapes[0]:
                raise InternalError(f"{inputs[0]} cannot be read as {spec}")
            return spec
        case Part(which):
            rows, cols = shapes[0]
            return Spec((rows, _int(cols) - 1) if which == "weight" else (rows,))
        case Element():
            return SCALAR
        case Stack():
            return Spec((len(inputs),))
        case Zeros(spec):
            return spec
        case Share(rows):
            return Spec(tuple(rows if dim in SAMPLES else dim for dim in shapes[0]))
        case Unflatten(sizes, axis):
            at = len(shapes[0]) + axis
            if math.prod(sizes) != shapes[0][at]:
                raise InternalError(f"dimension {axis} of {inputs[0]} cannot be read as {sizes}")
            return Spec((*shapes[0][:at], *sizes, *shapes[0][at + 1 :]))
        case Flatten(count, axis):
            end = len(shapes[0]) + axis + 1
            merged = math.prod(map(_int, shapes[0][end - count : end]))
            return Spec((*shapes[0][: end - count], merged, *shapes[0][end:]))
        case Permute(order):
            kept = len(shapes[0]) - len(order)
            return Spec((*shapes[0][:kept], *(shapes[0][kept + i] for i in order)))
        case Softmax() | SampleCategorical():
            return Spec(shapes[0])
        case Random(_, shape):
            return Spec(shape)
        case Columns():
            return Spec((COLUMNS, *(shapes[0] if len(shapes) > 1 else shapes[0][:2])))
        case SampleDiagonal():
            return Spec((*shapes[0], shapes[0][-1]))
        case SampleOuter():
            return Spec((*shapes[0], shapes[1][-1]))
        case SampleMatrix(size):
            return Spec((*shapes[0][:-1], size, size))
        case SampleMultiply():
            return Spec(shapes[0][:-1])
        case SampleRoot() | ScaleSides() | Decay() | Precondition() | PreconditionEigen():
            return Spec(shapes[0])
        case Average() | DampedInverse():
            return inputs[0]
        case Eigen():
            size = inputs[0].size
            return inputs[0] if inputs[0].is_thin else Spec((size + 1, size))
        case exact.Rows(homogeneous):
            lead = max(shapes, key=len)[:2]
            width = _int(shapes[0][-1]) * (_int(shapes[1][-1]) + int(homogeneous))
            return Spec((*lead, width))
        case exact.RowGram():
            lead = max(shapes, key=len)[:2]
            return Spec((*lead, *lead))
        case exact.RowSquares(vector, coordinates):
            width = 1 if vector else _int(shapes[1][-1]) + int(bool(coordinates))
            return Spec((_int(shapes[0][-1]), width))
        case exact.Joined():
            return Spec((sum(math.prod(map(_int, shape)) for shape in shapes),))
        case exact.RootSolve():
            return Spec((*shapes[0][:2], 1))
        case exact.RootRest():
            return Spec(shapes[1])
        case exact.DualSolve() | exact.PrimalSolve():
            return Spec(shapes[2])
        case collectives.AllReduce():
            return Spec((collectives.bucket_size(inputs),))
        case collectives.AllGather():
            return Spec((op.elements,))
        case collectives.CongruenceRows(_, count):
            return Spec((count, shapes[0][-1]))
        case collectives.Reduced(_, spec):
            return spec
        case FeaturesLast():
            return Spec((*shapes[0][1:], shapes[0][0]))
        case Windowed():
            return op.result(inputs)
        case StepSizes(groups):
            return Spec((len(groups) + 4,))
    raise InternalError(f"no shape rule for {op}")


def broadcast(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """numpy's broadcasting over integer and symbolic dimensions."""
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(sizes) > 1:
            raise InternalError(f"shapes {shapes} do not broadcast")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def _pointwise(inputs: list[Spec]) -> Spec:
    """Broadcast shape; a matrix structure survives if all non-scalar inputs share it."""
    shape = broadcast(*(spec.shape for spec in inputs)) if inputs else ()
    wide = [spec for spec in inputs if spec.size]
    if wide and all(spec.size or spec.shape == () for spec in inputs):
        structure = reduce(Structure.join, (spec.structure for spec in wide))
        if structure is Structure.SYMMETRIC and any(s.structure is not structure for s in wide):
            raise InternalError("an elementwise operation mixes a full matrix with a diagonal one")
        return Spec(shape, structure, wide[0].size)
    return Spec(shape)


def _int(dim: Dim) -> int:
    if not isinstance(dim, int):
        raise InternalError(f"the symbolic dimension {dim} stands where a number must")
    return dim
