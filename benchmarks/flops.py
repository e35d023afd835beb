"""Arithmetic of a step: multiplications and additions, a product known to be symmetric counted once.

Ours are counted from the compiled program, the peers' from the formulas of the algorithm they run. Both
count what the mathematics asks for, not what a library happens to execute, so a rate is comparable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

from gncompile import step_program as ir
from gncompile.runtime.memory import bind_shape
from gncompile.step_program import Instruction, StepProgram

Dims = Mapping[str, int]


def program_flops(program: StepProgram, phases: Iterable[str], dims: Dims) -> float:
    """Flops of some phases of a program for a batch with these dimensions."""
    return sum(
        instruction_flops(instruction, program, dims)
        for phase in phases
        for instruction in program.phase(phase)
    )


def instruction_flops(i: Instruction, program: StepProgram, dims: Dims) -> float:
    """Flops of one instruction; what only moves or fills memory counts nothing."""
    shapes = [bind_shape(program[name].spec.shape, dims) for name in i.inputs]
    out = bind_shape(i.spec.shape, dims)
    size = math.prod(out)
    match i.op:
        case ir.Affine():
            return sum(2 * size * x[-1] for x in shapes[0 : len(shapes) - 1 : 2])
        case ir.MatMul(transpose_a=transposed):
            return 2 * size * shapes[0][-2 if transposed else -1]
        case ir.Moment():
            # One input: the triangle of a symmetric product.
            return (1 if len(shapes) == 1 else 2) * size * math.prod(shapes[0][:-1])
        case ir.SymmetricProduct():
            return size * shapes[0][0]
        case ir.Multiply():
            return 2 * size * shapes[0][-1] if len(shapes[0]) == 2 else size
        case ir.DampedInverse():
            return out[-1] ** 3 if len(out) == 2 else size
        case ir.Eigen():
            return 9 * out[-1] ** 3 if len(out) == 2 else size
        case ir.Precondition():
            return sum(2 * size * s[-1] if len(s) == 2 else size for s in shapes[1:])
        case ir.PreconditionEigen():
            return sum(4 * size * s[-1] if len(s) == 2 else 0 for s in shapes[1:3]) + 2 * size
        case ir.Pointwise(expression=expression):
            return size * int(expression.count_ops())
        case ir.Dot():
            return 2 * math.prod(shapes[0])
        case ir.Total() | ir.Mean() | ir.RowSum() | ir.LogSumExp() | ir.Softmax():
            return math.prod(shapes[0])
        case ir.Average() | ir.Decay() | ir.Hadamard() | ir.PlusTranspose() | ir.ScaleSides():
            return size
    return 0


# --- the peers, on a chain of affine layers -----------------------------------------------------------


def gradient_flops(widths: tuple[int, ...], batch: int) -> float:
    """Forward, vectors backwards, weight gradients: three products a layer, two for the first."""
    weights = [i * o for i, o in pairwise(widths)]
    return 2 * batch * (3 * sum(weights) - weights[0])


def kfra_flops(widths: tuple[int, ...], batch: int) -> float:
    """A gradient, Q of every layer, and ``Ḡ ← WᵀḠW ⊙ E[b bᵀ]`` for every layer but the first."""
    products = sum(2 * o * o * i + o * i * i for i, o in list(pairwise(widths))[1:])
    slopes = sum(batch * d * d for d in widths[1:-1])
    return gradient_flops(widths, batch) + _input_moments(widths, batch) + products + slopes


def kfac_flops(widths: tuple[int, ...], batch: int) -> float:
    """A gradient, Q of every layer, sampled vectors backwards, and their second moments."""
    weights = [i * o for i, o in pairwise(widths)]
    vectors = 2 * batch * (sum(weights) - weights[0])
    moments = sum(batch * d * d for d in widths[1:])
    return gradient_flops(widths, batch) + _input_moments(widths, batch) + vectors + moments


def _input_moments(widths: tuple[int, ...], batch: int) -> float:
    return sum(batch * d * d for d in widths[:-1])
