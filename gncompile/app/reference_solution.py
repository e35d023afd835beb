"""The solution of a residual problem where it is known: values to compare a network with."""

from __future__ import annotations

from typing import Any

import torch
from sympy import Expr
from sympy.core.function import AppliedUndef
from torch import Tensor

from ..errors import CompileError, DataError, expected_got
from ..frontends.equations import Names
from ..functions.declarations import over_symbols, without_piecewise
from ..functions.expressions import evaluate
from ..functions.parsing import parse_expression
from ..functions.stable_forms import stable

WHERE = "the reference"


def reference_values(reference: Any, names: Names, points: Tensor) -> Tensor:
    """The values ``[n, K]`` of a reference at ``points [n, d]``, of K outputs.

    It is a tensor of as many numbers, a function of the points, or an expression in the inputs, of several
    outputs a list of them. Raises :class:`~gncompile.errors.GncompileError` for names that are no inputs,
    other numbers of values, values that are not finite, and where all are 0, since errors are relative.
    """
    if isinstance(reference, Tensor):
        given: Any = reference
    elif callable(reference):
        given = reference(points)
    else:
        several = reference if isinstance(reference, list | tuple) else [reference]
        at = {names.symbols[name]: points[:, i] for i, name in enumerate(names.inputs)}
        read = [_of_inputs(each, names) for each in several]
        given = torch.stack([evaluate(e, at).expand(len(points)) for e in read], dim=1)
    values = torch.as_tensor(given).to(points)
    wanted = [len(points), len(names.outputs)]
    if values.numel() != wanted[0] * wanted[1]:
        raise DataError(
            f"the reference has another shape\n{expected_got(wanted, list(values.shape))}",
            where=WHERE,
            instead=f"give a value for each of {', '.join(names.outputs)} at every point",
        )
    values = values.reshape(wanted)
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).any(dim=1).nonzero()[0])
        place = zip(names.inputs, points[row].tolist(), strict=True)
        raise DataError(
            f"the reference is {values[row].tolist()} at {', '.join(f'{n} = {v:.6g}' for n, v in place)}",
            where=WHERE,
            instead="give one that is finite at all points",
        )
    if not bool(values.any()):
        raise DataError(
            "the reference is 0 at all points, and the error is relative to its norm",
            where=WHERE,
            instead="leave it out, and look at the outputs themselves",
        )
    return values


def _of_inputs(given: object, names: Names) -> Expr:
    """An expression in the inputs alone, as text or sympy."""
    known = {name: names.symbols[name] for name in names.inputs}
    if isinstance(given, str):
        return parse_expression(given, known, where=WHERE)
    read = given if isinstance(given, Expr) and not given.has(AppliedUndef) else None
    if read is None or {s.name for s in read.free_symbols} - known.keys():
        raise CompileError(
            f"the reference {given} is no function of the inputs",
            instead=f"write it with {', '.join(known)} alone",
        )
    return stable(without_piecewise(over_symbols(read, known), WHERE))
