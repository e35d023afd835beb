"""Every registered function and its slope as printed for Triton, against values of many digits.

In the interpreter float32 and float64 are numpy's, so this measures the printed forms and the polynomials of
``accurate``, not a GPU's own exponential.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from sympy import Expr, Symbol
from torch import Tensor

from docs.accuracy_table import DTYPES, WHATS, bound, worst
from gncompile.emit.triton_functions import kernels_module, triton_function
from gncompile.functions.transfer import transfer_names
from gncompile.runtime.source_files import load_source
from gncompile.triton_kernels.elementwise import elementwise
from gncompile.verification import accuracy
from gncompile.verification.accuracy import measure_accuracy

DENSITY = 12  # some 60 arguments a function and dtype, those that break things among them


def run_triton(expression: Expr, values: Mapping[Symbol, Tensor]) -> Tensor:
    """Execute what the Triton backend prints."""
    text = kernels_module([triton_function("tile", expression, list(values))])
    module, _ = load_source(text, "accuracy")
    out = torch.full_like(next(iter(values.values())), torch.nan)
    elementwise(module.tile, tuple(values.values()), (out,))
    return out


@pytest.mark.parametrize("name", transfer_names())
def test_printed_functions_keep_the_stated_bounds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "BACKENDS", {"triton": run_triton})
    measured = measure_accuracy(name, density=DENSITY)
    for what in WHATS:
        stated = bound(name, what)
        for dtype in DTYPES:
            found = worst(measured, what, dtype, stated.measure)
            assert found.error <= stated.of(dtype), f"{what} in {dtype}: {found}, not {stated}"
