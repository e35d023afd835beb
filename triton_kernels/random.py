"""Random numbers as operands of kernels: Philox, numbered by element, so that no number depends on a tile.

A :class:`Draw` stands where a generated function reads a tensor. What a kernel would load it computes
instead, from a state ``[seed, counter]`` in device memory; the numbers and their order are those of
:class:`gncompile.runtime.draws.PhiloxDraws`. Kernels of one phase read one counter, each draw at a place of
its own from it on, and after them :data:`~.sampling.advance` counts their draws. So a draw may be computed
twice, and a captured graph draws anew at each replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from . import accurate
from .language import tl, triton

Distribution = Literal["uniform", "normal", "sign"]
"""Uniform on [0, 1), standard normal, ±1 with equal probability."""


@dataclass(frozen=True)
class Draw:
    """Random numbers, one for every place of a shape, that are in no memory.

    ``state`` is ``[seed, counter]``, ``number`` says how many draws come before this one since the state
    was last advanced. Kernels read it as a matrix, no item of a batch: every item would have equal numbers.
    """

    kind: Distribution
    shape: tuple[int, ...]
    state: Tensor
    number: int = 0


@triton.jit
def words(state, number, index):
    """The four words of Philox at ``index`` and the state's counter plus ``number``."""
    seed = tl.load(state)
    counter = tl.load(state + 1) + number
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
def normal(a, b, DTYPE: tl.constexpr):
    """Standard normal (the first number of Box and Muller's two); below 5.8 in float32, 6.7 in float64."""
    radius = accurate.sqrt(-2.0 * tl.log(inner_unit(a, DTYPE)))
    return radius * tl.cos(6.283185307179586 * unit(b, DTYPE))


@triton.jit
def drawn(state, number, index, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of a draw at 64-bit element numbers ``index``."""
    w0, w1, _, _ = words(state, number, index)
    if KIND == "uniform":
        tile = unit(w0, DTYPE)
    elif KIND == "sign":
        tile = sign(w0, DTYPE)
    else:
        tile = normal(w0, w1, DTYPE)
    return tile
