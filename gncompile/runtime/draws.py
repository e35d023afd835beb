"""Where a program's random numbers come from, and what of that a checkpoint keeps.

Emitted torch statements draw from a generator of torch's. Triton kernels compute their draws where they use
them, by Philox; :class:`PhiloxDraws` holds the state they read, and draws the same numbers without Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MASK = 0xFFFFFFFF

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.float64]


class Draws(Protocol):
    """A source of random numbers."""

    seed: int

    def fill(self, kind: str, out: Tensor) -> None:
        """Fill ``out`` with standard normal, uniform [0, 1) or ±1 numbers."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the next draws depend on; not copied."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state`` was taken, or start again from the seed if another kind of source made it.

        Backends and devices draw differently, so that nothing of one continues the numbers of another.
        """


class TorchDraws:
    """Draws of a generator of torch's."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def fill(self, kind: str, out: Tensor) -> None:
        """See :class:`Draws`."""
        if kind == "normal":
            out.normal_(generator=self.generator)
        elif kind == "uniform":
            out.uniform_(generator=self.generator)
        else:
            out.bernoulli_(0.5, generator=self.generator).mul_(2).sub_(1)

    def state_dict(self) -> dict[str, Tensor]:
        """See :class:`Draws`."""
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`Draws`."""
        stored = state.get("state")
        if stored is None or stored.shape != self.generator.get_state().shape:
            self.generator.manual_seed(self.seed)
        else:
            self.generator.set_state(stored.cpu())


class PhiloxDraws:
    """Draws of Philox 4x32-10 under the key ``seed``, numbered by ``counter`` and by element.

    Element ``(r, c)`` of a draw ``[R, C]`` takes words of the 128-bit counter ``(r C + c, counter)``: a
    uniform number or a sign the first, a normal number the first two. Every draw adds one to the counter.

    Source: Salmon, Moraes, Dror, Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.

    Attributes:
        state: ``[seed, counter]``, int64, where the kernels read it; always the same tensor.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)  # the same bits, as an int64
        self.state = torch.tensor([self.seed, 0], device=device)

    def fill(self, kind: str, out: Tensor) -> None:
        """See :class:`Draws`; uniform numbers have 24 bits, 32 in float64."""
        seed, counter = self.state.tolist()
        words = philox(seed, np.arange(out.numel(), dtype=np.uint64), counter)
        numbers = NUMBERS[kind](words, 32 if out.dtype == torch.float64 else 24)
        out.copy_(torch.from_numpy(numbers).reshape(out.shape))
        self.state[1] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """See :class:`Draws`."""
        return {"philox": self.state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`Draws`."""
        stored = state.get("philox", torch.tensor([self.seed, 0]))
        self.state.copy_(stored)


def philox(seed: int, index: Words, counter: int) -> tuple[Words, Words, Words, Words]:
    """The four words of Philox 4x32-10 at the counters ``(index, counter)`` of twice 64 bits."""
    mask, shift = np.uint64(MASK), np.uint64(32)
    c0, c1 = index & mask, index >> shift
    c2, c3 = (np.full_like(index, counter >> bits & MASK) for bits in (0, 32))
    key0, key1 = seed & MASK, seed >> 32 & MASK
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = second >> shift ^ c1 ^ np.uint64(key0), second & mask
        c2, c3 = first >> shift ^ c3 ^ np.uint64(key1), first & mask
        key0, key1 = key0 + 0x9E3779B9 & MASK, key1 + 0xBB67AE85 & MASK
    return c0, c1, c2, c3


def _highest(word: Words, bits: int) -> Numbers:
    """The highest bits of a word, as a number below 2^bits."""
    return (word >> np.uint64(32 - bits)).astype(np.float64)


def _uniform(words: tuple[Words, ...], bits: int) -> Numbers:
    """On [0, 1), by the highest ``bits``."""
    return _highest(words[0], bits) * 2.0**-bits


def _sign(words: tuple[Words, ...], bits: int) -> Numbers:
    """±1 by the highest bit."""
    return 1.0 - 2.0 * _highest(words[0], 1)


def _normal(words: tuple[Words, ...], bits: int) -> Numbers:
    """The first of Box and Muller's two numbers; its radius from the middle of an interval, never 0."""
    inner = bits - (bits < 32)  # float32 has no room for the middles of 2²⁴ intervals
    middle = (_highest(words[0], inner) + 0.5) * 2.0**-inner
    angle = 2 * np.pi * _uniform(words[1:], bits)
    radius: Numbers = np.sqrt(-2 * np.log(middle))
    return radius * np.cos(angle)


NUMBERS: dict[str, Callable[[tuple[Words, ...], int], Numbers]] = {
    "uniform": _uniform,
    "sign": _sign,
    "normal": _normal,
}
"""Numbers of each kind from the four words, of so many bits."""
