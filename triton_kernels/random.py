"""Random numbers on the device: Philox, numbered by element, so that no result depends on tile sizes.

The state is an int64 tensor ``[seed, counter]`` in device memory. Element e of a draw is word ``e // Q`` of
Philox 4x32-10 at the 128-bit counter ``(e % Q, counter)`` under the key ``seed``, where Q is a quarter of the
number of elements, rounded up; a categorical draw takes word 0 at ``(e, counter)``. Each draw ends by adding
one to the counter on the device, so a captured graph draws anew at each replay; equal states draw equal
numbers.

Source: Salmon, Moraes, Dror, Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gncompile.errors import InternalError, expected_got, message

from . import accurate
from .elementwise import arithmetic_type, shape_of
from .language import tl, triton
from .launches import Launch, Template, matrix
from .reduce import ReduceSettings
from .reduce import default_settings as row_settings
from .tiles import load_tiles, offsets, store_tile

Distribution = Literal["uniform", "normal", "sign"]
"""Uniform on [0, 1), standard normal, ±1 with equal probability."""

MASK = 0xFFFFFFFF

BLOCK = 512
"""Counters of a program by default; each gives four numbers."""


def random_state(seed: int, device: torch.device | str = "cpu") -> Tensor:
    """A fresh state: ``[seed, 0]``."""
    return torch.tensor([seed, 0], dtype=torch.int64, device=device)


def space() -> tuple[int, ...]:
    """Blocks worth measuring."""
    return (128, 256, 512, 1024)


def cost(out: Tensor) -> tuple[int, int]:
    """Operations, 25 a number for ten rounds of Philox, and bytes moved."""
    return 25 * out.numel(), out.numel() * out.element_size()


@triton.jit
def words(state, index):
    """The four words of Philox at ``index`` and the state's counter."""
    seed = tl.load(state)
    counter = tl.load(state + 1)
    low = (index & 0xFFFFFFFF).to(tl.uint32)
    high = (index >> 32).to(tl.uint32)
    third = low * 0 + (counter & 0xFFFFFFFF).to(tl.uint32)
    fourth = low * 0 + (counter >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, third, fourth)


@triton.jit
def unit(word, DTYPE: tl.constexpr):
    """Uniform on [0, 1): the upper 24 bits in float32, all 32 in float64."""
    if DTYPE == tl.float64:  # noqa: SIM300
        u = word.to(tl.float64) * 2.3283064365386963e-10
    else:
        u = (word >> 8).to(tl.int32).to(tl.float32) * 5.960464477539063e-08
    return u


@triton.jit
def inner_unit(word, DTYPE: tl.constexpr):
    """Uniform on (0, 1), ends excluded: the middles of 2²³ intervals in float32, of 2³² in float64."""
    if DTYPE == tl.float64:  # noqa: SIM300
        u = (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    else:
        u = ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return u


@triton.jit
def sign(word, DTYPE: tl.constexpr):
    """±1 by the highest bit."""
    return 1.0 - 2.0 * (word >> 31).to(tl.int32).to(DTYPE)


@triton.jit
def normal_pair(a, b, DTYPE: tl.constexpr):
    """Two independent standard normal numbers (Box and Muller); below 5.8 in float32, 6.7 in float64."""
    radius = accurate.sqrt(-2.0 * tl.log(inner_unit(a, DTYPE)))
    angle = 6.283185307179586 * unit(b, DTYPE)
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def store_element(out, value, element, size, column_count):
    """Write numbers to the elements of a matrix, counted row by row."""
    at = offsets(element // column_count, out.row) + offsets(element % column_count, out.column)
    tl.store(out.pointer + at, value, mask=element < size)


@triton.jit
def draw_kernel(
    out, state, size, column_count, quarter,
    DISTRIBUTION: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Counter q gives the elements ``q, q + Q, q + 2Q, q + 3Q``: each of the four stores is contiguous."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = words(state, index)
    if DISTRIBUTION == "uniform":
        x0, x1, x2, x3 = unit(w0, DTYPE), unit(w1, DTYPE), unit(w2, DTYPE), unit(w3, DTYPE)
    elif DISTRIBUTION == "sign":
        x0, x1, x2, x3 = sign(w0, DTYPE), sign(w1, DTYPE), sign(w2, DTYPE), sign(w3, DTYPE)
    else:
        x0, x1 = normal_pair(w0, w1, DTYPE)
        x2, x3 = normal_pair(w2, w3, DTYPE)
    # Counters beyond the quarter belong to no element.
    inside = tl.where(index < quarter, size, 0)
    store_element(out, x0, index, inside, column_count)
    store_element(out, x1, index + quarter, inside, column_count)
    store_element(out, x2, index + 2 * quarter, inside, column_count)
    store_element(out, x3, index + 3 * quarter, inside, column_count)


@triton.jit
def advance_kernel(state):
    """The next draw's counter; a launch of its own, after every program of the draw has read the old one."""
    tl.store(state + 1, tl.load(state + 1) + 1)


@triton.jit
def gumbel_kernel(
    logits, chosen, one_hot, state, row_count, column_count, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``argmax(logits + Gumbel noise)`` of each row: a sample of its softmax, without computing that."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < row_count
    best = tl.full((BLOCK_M,), float("-inf"), DTYPE)
    choice = tl.zeros((BLOCK_M,), tl.int32)
    for first in range(0, column_count, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        mask = columns < column_count
        (tile,) = load_tiles((logits,), rows, columns, row_mask, mask, ("full",), DTYPE)
        element = rows.to(tl.int64)[:, None] * column_count + columns[None, :]
        word, _, _, _ = words(state, element)
        score = tile - tl.log(-tl.log(inner_unit(word, DTYPE)))
        score = tl.where(mask[None, :], score, float("-inf"))
        highest, where = tl.max(score, axis=1, return_indices=True)
        choice = tl.where(highest > best, first + where, choice)
        best = tl.maximum(best, highest)
    store_choice(chosen, one_hot, choice, rows, row_mask, column_count, BLOCK_N)


@triton.jit
def inverse_kernel(
    probabilities, uniforms, chosen, one_hot, row_count, column_count, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The number of columns whose cumulated probability is at most u, at most the last column."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < row_count
    u = tl.load(uniforms.pointer + offsets(rows, uniforms.row), mask=row_mask, other=0.0).to(DTYPE)
    below = tl.zeros((BLOCK_M,), DTYPE)
    choice = tl.zeros((BLOCK_M,), tl.int32)
    for first in range(0, column_count, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        mask = columns < column_count
        (tile,) = load_tiles((probabilities,), rows, columns, row_mask, mask, ("full",), DTYPE)
        reached = below[:, None] + tl.cumsum(tile, axis=1)
        passed = (reached <= u[:, None]) & mask[None, :]
        choice += tl.sum(passed.to(tl.int32), axis=1)
        below += tl.sum(tile, axis=1)
    choice = tl.minimum(choice, column_count - 1)
    store_choice(chosen, one_hot, choice, rows, row_mask, column_count, BLOCK_N)


@triton.jit
def store_choice(chosen, one_hot, choice, rows, row_mask, column_count, BLOCK_N: tl.constexpr):
    """Write the chosen column of each row, as a number or as a row of zeros and one 1."""
    if chosen is not None:
        tl.store(chosen + rows, choice, mask=row_mask)
    if one_hot is not None:
        for first in range(0, column_count, BLOCK_N):
            columns = first + tl.arange(0, BLOCK_N)
            hit = (columns[None, :] == choice[:, None]).to(tl.float32)
            store_tile(one_hot, hit, rows, columns, row_mask, columns < column_count)


def _advance(state: Tensor) -> Launch:
    return Launch(advance_kernel, (1,), {"state": state}, 1, 1)


def _draw(
    distribution: Distribution, out: Tensor, state: Tensor, *, block: int = BLOCK
) -> list[Launch]:
    """Fill ``out`` (up to two dimensions, any strides) and advance the state.

    Rounding aside: uniforms are multiples of 2^-24 in float32 and of 2^-32 in float64.
    """
    _, rows, columns = shape_of((out,))
    size = rows * columns
    if out.dim() > 2:
        raise InternalError(f"random numbers are drawn into matrices, not {list(out.shape)}")
    quarter = triton.cdiv(size, 4)
    arguments = {
        "out": matrix(out),
        "state": state,
        "size": size,
        "column_count": columns,
        "quarter": quarter,
        "DISTRIBUTION": distribution,
        "DTYPE": arithmetic_type((out,)),
        "BLOCK": block,
    }
    return [Launch(draw_kernel, (triton.cdiv(quarter, block),), arguments, 4, 1), _advance(state)]


draw = Template(_draw)


def _choice(
    name: str,
    x: Tensor,
    chosen: Tensor | None,
    one_hot: Tensor | None,
    settings: ReduceSettings | None,
) -> dict[str, Any]:
    """Arguments of both samplers; checks what they write to."""
    rows, columns = x.shape
    for what, tensor, shape in (("chosen", chosen, (rows,)), ("one_hot", one_hot, (rows, columns))):
        if tensor is not None and (tensor.shape != shape):
            raise InternalError(
                message(
                    f"{what} of a categorical sample has the wrong shape",
                    where=expected_got(list(shape), list(tensor.shape)),
                )
            )
    settings = settings or row_settings(rows, columns)
    return {
        name: matrix(x),
        "chosen": chosen,
        "one_hot": None if one_hot is None else matrix(one_hot),
        "row_count": rows,
        "column_count": columns,
        "DTYPE": arithmetic_type((x,)),
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
    }


def _categorical(
    logits: Tensor,
    state: Tensor,
    *,
    chosen: Tensor | None = None,
    one_hot: Tensor | None = None,
    settings: ReduceSettings | None = None,
) -> list[Launch]:
    """One sample of ``softmax(logits)`` for each row of ``[M, N]``; advances the state.

    Args:
        logits: ``[M, N]``; -inf excludes a class.
        state: From :func:`random_state`.
        chosen: Integers ``[M]``, contiguous, for the class.
        one_hot: ``[M, N]``, for the class as a row of zeros and one 1.
        settings: The tile of rows and columns; the sample does not depend on it.
    """
    arguments = _choice("logits", logits, chosen, one_hot, settings) | {"state": state}
    grid = (triton.cdiv(arguments["row_count"], arguments["BLOCK_M"]),)
    return [Launch(gumbel_kernel, grid, arguments, 4, 1), _advance(state)]


categorical = Template(_categorical)


def _categorical_at(
    probabilities: Tensor,
    uniforms: Tensor,
    *,
    chosen: Tensor | None = None,
    one_hot: Tensor | None = None,
    settings: ReduceSettings | None = None,
) -> list[Launch]:
    """The first class of each row whose cumulated probability exceeds u ``[M, 1]``; the last one at most."""
    arguments = _choice("probabilities", probabilities, chosen, one_hot, settings)
    arguments["uniforms"] = matrix(uniforms)
    grid = (triton.cdiv(arguments["row_count"], arguments["BLOCK_M"]),)
    return [Launch(inverse_kernel, grid, arguments, 4, 1)]


categorical_at = Template(_categorical_at)


# References -----------------------------------------------------------------------------------------------


def philox_reference(seed: int, counters: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Philox 4x32-10 in Python's integers: four words for each counter of four words."""
    found: list[tuple[int, ...]] = []
    for counter in counters:
        c0, c1, c2, c3 = counter
        key0, key1 = seed & MASK, seed >> 32 & MASK
        for _ in range(10):
            first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
            c0, c1, c2, c3 = (
                second >> 32 ^ c1 ^ key0,
                second & MASK,
                first >> 32 ^ c3 ^ key1,
                first & MASK,
            )
            key0, key1 = key0 + 0x9E3779B9 & MASK, key1 + 0xBB67AE85 & MASK
        found.append((c0, c1, c2, c3))
    return found


def uniform_reference(size: int, seed: int, counter: int) -> list[float]:
    """What :data:`draw` puts into ``size`` float32 elements."""
    quarter = -(-size // 4)
    low, high = counter & MASK, counter >> 32
    drawn = philox_reference(seed, [(q, 0, low, high) for q in range(quarter)])
    return [(drawn[e % quarter][e // quarter] >> 8) * 2.0**-24 for e in range(size)]


def categorical_at_reference(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The classes that :data:`categorical_at` chooses."""
    passed = probabilities.cumsum(dim=1) <= uniforms
    return passed.sum(dim=1).clamp(max=probabilities.shape[1] - 1)
