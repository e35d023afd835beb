"""The solution of a residual problem where it is known: values to compare a network with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sympy import Expr
from sympy.core.function import AppliedUndef
from torch import Tensor

from ..base.tables import count
from ..errors import CompileError, DataError, expected_got
from ..frontends.equations import Names
from ..functions.declarations import over_symbols, without_piecewise
from ..functions.expressions import evaluate
from ..functions.parsing import parse_expression
from ..functions.stable_forms import stable
from .residual_terms import tensor_of

WHERE = "the reference"
COLUMNS = str | Expr | Tensor | np.ndarray
"""What makes a list one of columns; a list of numbers, or of lists of them, is an array."""


def reference_values(reference: Any, names: Names, points: Tensor) -> Tensor:
    """The values ``[n, K]`` of a reference at ``points [n, d]``, of K outputs.

    It is values ``[n, K]``, of one output also ``[n]``, as a tensor, an array or nested lists; an expression
    in the inputs, or a number; a list of K columns, one an output, where one of them is a text, an
    expression, a tensor or an array; or a function of the points that returns one of these. Raises
    :class:`~gncompile.errors.GncompileError` for names that are no inputs, values of another shape, that
    are not real or not finite, no points, and where all are 0, since errors are relative.
    """
    if not len(points):
        raise DataError("there are no points", where=WHERE, instead="give at least one")
    given = reference(points.clone()) if callable(reference) else reference
    if isinstance(given, list | tuple) and any(isinstance(each, COLUMNS) for each in given):
        if len(given) != len(names.outputs):
            raise _other_shape(len(points), names.outputs, [len(points), len(given)])
        pairs = zip(given, names.outputs, strict=True)
        values = torch.cat(
            [_values(each, (output,), names, points) for each, output in pairs], dim=1
        )
    else:
        values = _values(given, names.outputs, names, points)
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


def _values(given: object, outputs: Sequence[str], names: Names, points: Tensor) -> Tensor:
    """The values ``[n, k]`` of k outputs, by numbers or, of one, by an expression."""
    n, k = len(points), len(outputs)
    if isinstance(given, str | Expr):
        found = _evaluated(given, names, points)
    elif isinstance(given, int | float | np.integer | np.floating):
        found = points.new_full((n,), float(given))
    else:
        found = tensor_of(given, WHERE, WHERE).to(points)
    if found.shape != (n, k) and not (k == 1 and found.shape == (n,)):
        raise _other_shape(n, outputs, list(found.shape))
    return found.reshape(n, k)


def _other_shape(n: int, outputs: Sequence[str], got: list[int]) -> DataError:
    wanted = f"[{n}] or [{n}, 1]" if len(outputs) == 1 else f"[{n}, {len(outputs)}]"
    return DataError(
        f"the reference has another shape\n{expected_got(wanted, got)}",
        where=f"{WHERE} of {', '.join(outputs)}",
        instead=f"give a row for each of the {count(n, 'point')}, with a value of {', '.join(outputs)}",
    )


def _evaluated(given: str | Expr, names: Names, points: Tensor) -> Tensor:
    """An expression in the inputs alone, as text or sympy, at ``points``: ``[n]``."""
    known = {name: names.symbols[name] for name in names.inputs}
    if isinstance(given, str):
        read = parse_expression(given, known, where=WHERE)
    else:
        if given.has(AppliedUndef) or {s.name for s in given.free_symbols} - known.keys():
            raise CompileError(
                f"the reference {given} is no function of the inputs",
                instead=f"write it with {', '.join(known)} alone",
            )
        read = stable(without_piecewise(over_symbols(given, known), WHERE))
    at = {symbol: points[:, i] for i, symbol in enumerate(known.values())}
    try:
        return evaluate(read, at).expand(len(points))
    except TypeError:  # of a constant that is no float
        raise CompileError(
            f"the reference {given} is complex", instead="write one with real values"
        ) from None
