"""Sources of random numbers: Philox against published answers, distributions by statistics, states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gncompile.runtime.draws import Draws, PhiloxDraws, TorchDraws, philox

CPU = torch.device("cpu")
SEED = 12345678901234
SAMPLES = 40_000

KNOWN = [
    (0, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (-1, ((1 << 64) - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        0x299F31D0A4093822,
        (0x85A308D3243F6A88, 0x0370734413198A2E),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""Key, counter and words of the Random123 library, file kat_vectors; the last are digits of π."""


@pytest.mark.parametrize(("seed", "counter", "words"), KNOWN)
def test_philox_gives_the_published_words(
    seed: int, counter: tuple[int, int], words: tuple[int, ...]
) -> None:
    index = np.array([5, counter[0]], dtype=np.uint64)
    assert tuple(int(word[1]) for word in philox(seed, index, counter[1])) == words


def filled(draws: Draws, kind: str, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    out = torch.full(shape, math.nan, dtype=dtype)
    draws.fill(kind, out)
    return out


@pytest.mark.parametrize("source", [PhiloxDraws, TorchDraws])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        ("uniform", [1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 9]),
        ("normal", [0, 1, 0, 3, 105]),
        ("sign", [0, 1, 0, 1, 1]),
    ],
)
def test_moments(kind: str, moments: list[float], dtype: torch.dtype, source: type) -> None:
    """Moments 1, 2, 3, 4 and 8 within 4 standard errors; the seed is fixed, so this cannot flicker."""
    values = filled(source(1, CPU), kind, SAMPLES, dtype=dtype).double()
    for power, expected in zip((1, 2, 3, 4, 8), moments, strict=True):
        terms = values**power
        error = float(terms.std()) / math.sqrt(SAMPLES)
        assert abs(float(terms.mean()) - expected) <= 4 * error + 1e-12, power


def test_neighbours_and_draws_are_uncorrelated() -> None:
    draws = PhiloxDraws(2, CPU)
    first, second = (filled(draws, "normal", SAMPLES) for _ in range(2))
    for a, b in [(first[:-1], first[1:]), (first, second)]:
        # The mean of a product of independent normal numbers has standard error 1/√n.
        assert abs(float((a * b).mean())) < 4 / math.sqrt(len(a))


def test_uniforms_fill_their_interval_evenly() -> None:
    out = filled(PhiloxDraws(4, CPU), "uniform", SAMPLES, dtype=torch.float32)
    counts = torch.histc(out, 20, 0, 1)
    expected = SAMPLES / 20
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 43.8  # the 0.999 quantile with 19 degrees of freedom
    assert out.min() >= 0
    assert out.max() < 1


@pytest.mark.parametrize("source", [PhiloxDraws, TorchDraws])
def test_a_stored_state_continues(source: type) -> None:
    one, other = source(SEED, CPU), source(3, CPU)
    filled(one, "normal", 7)
    other.load_state_dict({name: t.clone() for name, t in one.state_dict().items()})
    for kind in ("uniform", "sign", "normal"):
        assert torch.equal(filled(one, kind, 5, 3), filled(other, kind, 5, 3))


@pytest.mark.parametrize("sources", [(PhiloxDraws, TorchDraws), (TorchDraws, PhiloxDraws)])
def test_the_state_of_another_source_starts_again(sources: tuple[type, type]) -> None:
    one, other = (source(SEED, CPU) for source in sources)
    first = filled(other, "uniform", 5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(filled(other, "uniform", 5), first)


def test_seeds_are_taken_as_torch_takes_them() -> None:
    """From -2⁶³ to 2⁶⁴ - 1, the upper half being other names for the negative ones."""
    draws = [PhiloxDraws(seed, CPU) for seed in (-1, (1 << 64) - 1, -(1 << 63))]
    a, b, c = (filled(one, "uniform", 4) for one in draws)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_counter_beyond_32_bits() -> None:
    draws = PhiloxDraws(SEED, CPU)
    draws.state[1] = (5 << 32) + 7
    high = filled(draws, "uniform", 6)
    assert draws.state.tolist() == [SEED, (5 << 32) + 8]
    draws.state[1] = 7
    assert not torch.equal(filled(draws, "uniform", 6), high)
