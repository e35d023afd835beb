"""Samples of categorical distributions, and the end of a phase's draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .elementwise import arithmetic_type
from .language import tl, triton
from .launches import Input, Launch, Template, kind, kinds, matrix, require
from .reduce import ReduceSettings, default_settings
from .tiles import load_tile, store_results


@triton.jit
def advance_kernel(state, count):
    """The next phase's counter; a launch of its own, after every program that reads the old one."""
    tl.store(state + 1, tl.load(state + 1) + count)


def _advance(state: Tensor, count: int) -> list[Launch]:
    """Count the draws that were computed from ``state``: ``[seed, counter]``."""
    return [Launch(advance_kernel, (1,), {"state": state, "count": count}, 1, 1)]


advance = Template(_advance)


@triton.jit
def categorical_kernel(
    p, u, out, outputs, inputs, row_count, column_count,
    KIND: tl.constexpr, EPILOGUE: tl.constexpr, KINDS: tl.constexpr, RESULTS: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The number of columns whose cumulated probability is at most u, at most the last column."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < row_count
    only = tl.arange(0, 1)
    uniform = load_tile(u, rows, only, row_mask, only < 1, KIND, DTYPE)
    below = tl.zeros((BLOCK_M,), DTYPE)
    choice = tl.zeros((BLOCK_M,), tl.int32)
    for first in range(0, column_count, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        mask = columns < column_count
        tile = load_tile(p, rows, columns, row_mask, mask, "full", DTYPE)
        reached = below[:, None] + tl.cumsum(tile, axis=1)
        passed = (reached <= uniform) & mask[None, :]
        choice += tl.sum(passed.to(tl.int32), axis=1)
        # Not `+= tl.sum(tile)`: a sum whose last value is not read ends the compiler of Triton 3.6.
        below = tl.max(reached, axis=1)
    choice = tl.minimum(choice, column_count - 1)
    for first in range(0, column_count, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        one_hot = (columns[None, :] == choice[:, None]).to(DTYPE)
        store_results(
            one_hot, out, outputs, inputs, rows, columns, row_mask, columns < column_count,
            EPILOGUE, KINDS, RESULTS, BLOCK_M, BLOCK_N,
        )  # fmt: skip


def _categorical(
    p: Tensor,
    u: Input,
    out: Tensor,
    *,
    epilogue: Any = None,
    epilogue_inputs: Sequence[Input] = (),
    outputs: Sequence[Tensor] = (),
    settings: ReduceSettings | None = None,
) -> list[Launch]:
    """``out[n]`` is 1 at the first class whose cumulated probability exceeds u, or at the last, else 0.

    Args:
        p: Probabilities ``[M, N]``.
        u: ``[M, 1]``, uniform on [0, 1).
        out: ``[M, N]``.
        epilogue: ``f(sample, t0, …) -> (o0, o1, …)`` of tiles, as in :func:`~.gemm.gemm`: ``o0`` goes to
            ``out``, the others to ``outputs``.
        epilogue_inputs: Tensors and draws ``[M, N]``, ``[N]``, ``[M, 1]`` or 0-d.
        outputs: ``[M, N]``.
        settings: The tile of rows and columns; samples depend on it in the rounding of sums only.
    """
    rows, columns = p.shape
    for tensor in (out, *outputs):
        require("an output of a categorical sample", tensor, rows, columns)
    settings = settings or default_settings(rows, columns)
    arguments = {
        "p": matrix(p),
        "u": matrix(u),
        "out": matrix(out),
        "outputs": tuple(map(matrix, outputs)),
        "inputs": tuple(map(matrix, epilogue_inputs)),
        "row_count": rows,
        "column_count": columns,
        "KIND": kind(u, rows, 1),
        "EPILOGUE": epilogue,
        "KINDS": kinds(epilogue_inputs, rows, columns),
        "RESULTS": len(outputs),
        "DTYPE": arithmetic_type((p,)),
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
    }
    grid = (triton.cdiv(rows, settings.block_m),)
    return [Launch(categorical_kernel, grid, arguments, settings.num_warps, 1)]


categorical = Template(_categorical)


def categorical_reference(
    p: Tensor,
    u: Tensor,
    out: Tensor,
    *,
    epilogue: Callable[..., tuple[Tensor, ...]] | None = None,
    epilogue_inputs: Sequence[Tensor] = (),
    outputs: Sequence[Tensor] = (),
) -> None:
    """:data:`categorical` in torch, with a function of tensors and no draws."""
    chosen = (p.cumsum(dim=1) <= u).sum(dim=1, keepdim=True).clamp(max=p.shape[1] - 1)
    sample = p.new_zeros(p.shape).scatter_(1, chosen, 1.0)
    results = (sample,) if epilogue is None else epilogue(sample, *epilogue_inputs)
    for tensor, result in zip((out, *outputs), results, strict=False):
        tensor.copy_(result)
