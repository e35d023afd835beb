"""Slopes computed in the products that read them, in place of being kept in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache

import sympy

from ..errors import InternalError
from ..functions.primitives import select
from . import operations as ir
from .step_program import Instruction, StepProgram

U, X = sympy.symbols("u x", real=True)
"""What the products multiply, and what the slope is computed from."""

SLOPES: Mapping[str, sympy.Expr] = {
    "tanh": 1 - X**2,
    "sigmoid": X * (1 - X),
    "relu": select(X, 1, 0),
}
"""Slopes in the function's own value x that torch has a kernel for the product with."""

KEPT: Mapping[str, int | str | None] = {"slope": "kept"}
"""The option of a slope that is to have memory of its own."""


def within_products(
    program: StepProgram, variants: Mapping[str, Mapping[str, int | str | None]] | None = None
) -> StepProgram:
    """The program as the torch backend computes it: :data:`SLOPES` within products, unless to be kept."""
    chosen = variants or {}
    slopes = [
        i.name
        for i in program
        if slope_of(i) and chosen.get(i.name) != KEPT and products(program, i)
    ]
    return recompute(program, slopes)


def slope_of(i: Instruction) -> str | None:
    """The function in :data:`SLOPES` that an instruction computes the slope of."""
    if not isinstance(i.op, ir.Pointwise) or len(i.op.symbols) != 1:
        return None
    return _slope_in(i.op.expression, *i.op.symbols)


@cache
def _slope_in(expression: sympy.Expr, symbol: sympy.Symbol) -> str | None:
    slope = expression.xreplace({symbol: X})
    return next((name for name, known in SLOPES.items() if known == slope), None)


def recompute(program: StepProgram, slopes: Collection[str]) -> StepProgram:
    """Without the ``slopes``: each product that reads one computes it from what it follows from.

    Raises :class:`InternalError` for a value that :func:`products` finds none for. ::

        b = 1 - a²          g = u (1 - a²)
        g = u b        →    r = v (1 - a²)
        r = v b
    """
    changed: dict[str, Instruction] = {}
    for name in slopes:
        readers = products(program, program[name])
        if not readers:
            raise InternalError(f"{program[name]} cannot be computed again in what reads it")
        changed |= {reader.name: _product(program[name], reader) for reader in readers}
    gone = set(slopes)
    kept = tuple(changed.get(i.name, i) for i in program if i.name not in gone)
    return replace(program, instructions=kept) if slopes else program


def products(program: StepProgram, slope: Instruction) -> list[Instruction]:
    """The products ``u ⊙ slope`` of equal shape and phase, if only such read it; else none.

    None either if it is more than a function of one value, or if that value is overwritten in a step.
    """
    if not _of_one_value(slope):
        return []
    read = program.storage[slope.inputs[0]]
    if slope.name in program.results.values() or read in program.overwritten:
        return []
    readers = program.readers[slope.name]
    return readers if all(_multiplies(program, i, slope) for i in readers) else []


def _multiplies(program: StepProgram, i: Instruction, slope: Instruction) -> bool:
    others = [program[name] for name in i.inputs if name != slope.name]
    return (
        isinstance(i.op, ir.Pointwise)
        and i.phase == slope.phase
        and len(others) == 1
        and i.op.expression == sympy.Mul(*i.op.symbols)
        and others[0].spec.shape == slope.spec.shape
        # Of two slopes only one could be taken out.
        and not _of_one_value(others[0])
    )


def _of_one_value(i: Instruction) -> bool:
    return isinstance(i.op, ir.Pointwise) and len(i.inputs) == 1 and i.into is None


def _product(slope: Instruction, reader: Instruction) -> Instruction:
    assert isinstance(slope.op, ir.Pointwise)
    (other,) = (name for name in reader.inputs if name != slope.name)
    (argument,) = slope.op.symbols
    expression = U * slope.op.expression.xreplace({argument: X})
    return replace(reader, op=ir.Pointwise(expression, (U, X)), inputs=(other, slope.inputs[0]))
