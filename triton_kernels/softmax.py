"""Softmax and its logarithm's sum by row, in one pass over the matrix, or two."""

from __future__ import annotations

import torch
from torch import Tensor

from gncompile.errors import InternalError

from . import accurate
from .elementwise import arithmetic_type
from .language import tl, triton
from .launches import Launch, Template, matrix, rows_of
from .reduce import ReduceSettings, default_settings
from .tiles import load_tile, store_tile


@triton.jit
def softmax_kernel(
    x, out, log_sum, row_count, column_count, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of each row together in one pass; the probabilities, if wanted, in a second."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < row_count
    largest = tl.full((BLOCK_M,), float("-inf"), DTYPE)
    total = tl.zeros((BLOCK_M,), DTYPE)
    for first in range(0, column_count, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        mask = columns < column_count
        tile = load_tile(x, rows, columns, row_mask, mask, "full", DTYPE)
        tile = tl.where(mask[None, :], tile, float("-inf"))
        larger = tl.maximum(largest, tl.max(tile, axis=1))
        shift = tl.where(larger == float("-inf"), 0.0, larger).to(DTYPE)
        total = total * accurate.exp(largest - shift)
        total += tl.sum(accurate.exp(tile - shift[:, None]), axis=1)
        largest = larger
    shift = tl.where(largest == float("-inf"), 0.0, largest).to(DTYPE)
    if log_sum is not None:
        tl.store(log_sum + rows, shift + tl.log(total), mask=row_mask)
    if out is not None:
        for first in range(0, column_count, BLOCK_N):
            columns = first + tl.arange(0, BLOCK_N)
            mask = columns < column_count
            tile = load_tile(x, rows, columns, row_mask, mask, "full", DTYPE)
            probability = accurate.exp(tile - shift[:, None]) / total[:, None]
            store_tile(out, probability, rows, columns, row_mask, mask)


def _softmax(
    x: Tensor,
    *,
    out: Tensor | None = None,
    log_sum: Tensor | None = None,
    settings: ReduceSettings | None = None,
) -> list[Launch]:
    """``out = softmax(x)`` and ``log_sum = log Σ e^x`` by row of ``[.., N]``, either or both; stable.

    ``log_sum`` is ``[..]`` or ``[.., 1]``, contiguous. A row that is -inf throughout gives NaN and -inf.
    """
    x = rows_of(x)
    rows, columns = x.shape
    settings = settings or default_settings(rows, columns)
    if log_sum is not None and not log_sum.is_contiguous():
        raise InternalError("the logarithms of a softmax need contiguous memory")
    arguments = {
        "x": matrix(x),
        "out": None if out is None else matrix(rows_of(out)),
        "log_sum": log_sum,
        "row_count": rows,
        "column_count": columns,
        "DTYPE": arithmetic_type((x,)),
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
    }
    grid = (triton.cdiv(rows, settings.block_m),)
    return [Launch(softmax_kernel, grid, arguments, settings.num_warps, 1)]


softmax = Template(_softmax)


def softmax_reference(
    x: Tensor, *, out: Tensor | None = None, log_sum: Tensor | None = None
) -> None:
    """:data:`softmax` in torch."""
    if out is not None:
        out.copy_(torch.softmax(x, dim=1))
    if log_sum is not None:
        log_sum.copy_(torch.logsumexp(x, dim=1).reshape(log_sum.shape))
