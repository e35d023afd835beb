"""Random numbers: the generator bit by bit, distributions by statistics with stated error bars."""

import math

import pytest
import torch

from gncompile.errors import InternalError
from gncompile.triton_kernels.random import (
    categorical,
    categorical_at,
    categorical_at_reference,
    cost,
    draw,
    philox_reference,
    random_state,
    space,
    uniform_reference,
)
from gncompile.triton_kernels.reduce import ReduceSettings

SEED = 12345678901234


def test_the_reference_is_philox():
    # Known answers of the Random123 library, file kat_vectors.
    assert philox_reference(0, [(0, 0, 0, 0)]) == [(0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)]
    ones = 0xFFFFFFFF
    assert philox_reference(ones << 32 | ones, [(ones,) * 4]) == [
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    ]


@pytest.mark.parametrize("shape", [(13, 9), (117,), ()])
@pytest.mark.parametrize("block", [16, 64])
def test_uniforms_are_those_of_the_reference_for_any_block(shape, block):
    out = torch.full(shape, torch.nan)
    state = random_state(SEED)
    for counter in range(2):
        draw("uniform", out, state, block=block)
        assert out.flatten().tolist() == uniform_reference(out.numel(), SEED, counter)
    assert state.tolist() == [SEED, 2]


def test_a_counter_beyond_32_bits():
    state = torch.tensor([SEED, (5 << 32) + 7])
    out = torch.empty(6)
    draw("uniform", out, state, block=16)
    assert out.tolist() == uniform_reference(6, SEED, (5 << 32) + 7)


def test_a_strided_view_gets_the_same_numbers():
    view, plain = torch.full((7, 16), torch.nan)[:, :5], torch.empty(7, 5)
    draw("normal", view, random_state(3), block=16)
    draw("normal", plain, random_state(3), block=32)
    assert torch.equal(view, plain)
    assert bool(view._base[:, 5:].isnan().all())


SAMPLES = 40_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        ("uniform", [1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 9]),
        ("normal", [0, 1, 0, 3, 105]),
        ("sign", [0, 1, 0, 1, 1]),
    ],
)
def test_moments(kind, moments, dtype):
    """Moments 1, 2, 3, 4 and 8 within 4 standard errors; the seed is fixed, so this cannot flicker."""
    out = torch.empty(200, SAMPLES // 200, dtype=dtype)
    draw(kind, out, random_state(1), block=2048)
    values = out.double().flatten()
    for power, expected in zip((1, 2, 3, 4, 8), moments, strict=True):
        terms = values**power
        error = terms.std() / math.sqrt(SAMPLES)
        assert abs(terms.mean() - expected) <= 4 * error + 1e-12, power


def test_neighbours_and_draws_are_uncorrelated():
    first, second = torch.empty(SAMPLES), torch.empty(SAMPLES)
    state = random_state(2)
    draw("normal", first, state, block=2048)
    draw("normal", second, state, block=2048)
    quarter = SAMPLES // 4
    pairs = [(first[:-1], first[1:]), (first, second), (first[:-quarter], first[quarter:])]
    for a, b in pairs:
        # The mean of a product of independent normal numbers has standard error 1/√n.
        assert abs((a * b).mean()) < 4 / math.sqrt(len(a))


def test_uniforms_fill_their_interval_evenly():
    out = torch.empty(SAMPLES)
    draw("uniform", out, random_state(4), block=2048)
    counts = torch.histc(out, 20, 0, 1)
    expected = SAMPLES / 20
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 43.8  # the 0.999 quantile with 19 degrees of freedom
    assert out.min() >= 0
    assert out.max() < 1


def test_samples_of_softmax():
    rows = 8000
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf, 0.5, 0.1]).expand(rows, 7)
    chosen, one_hot = torch.empty(rows, dtype=torch.int64), torch.full((rows, 7), torch.nan)
    state = random_state(5)
    categorical(logits, state, chosen=chosen, one_hot=one_hot, settings=ReduceSettings(1024, 8))
    assert torch.equal(one_hot, torch.nn.functional.one_hot(chosen, 7).float())
    assert state.tolist() == [5, 1]
    expected = rows * torch.softmax(logits[0], 0)
    counts = torch.bincount(chosen, minlength=7)
    assert counts[4] == 0
    keep = expected > 0
    chi_square = ((counts - expected) ** 2 / expected)[keep].sum()
    assert chi_square < 20.5  # the 0.999 quantile with 5 degrees of freedom


def test_samples_do_not_depend_on_the_tile():
    logits = torch.randn(33, 40)
    results = []
    for settings in (ReduceSettings(8, 16), ReduceSettings(64, 64)):
        chosen = torch.empty(33, dtype=torch.int32)
        categorical(logits, random_state(6), chosen=chosen, settings=settings)
        results.append(chosen)
    assert torch.equal(*results)


@pytest.mark.parametrize("columns", [1, 7, 40])
def test_inverting_the_distribution_function(columns):
    probabilities = torch.softmax(torch.randn(65, columns, dtype=torch.float64), 1)
    uniforms = torch.rand(65, 1, dtype=torch.float64)
    uniforms[0] = 1.0  # beyond the last cumulated probability: the last class
    chosen = torch.empty(65, dtype=torch.int64)
    one_hot = torch.full((65, columns), torch.nan, dtype=torch.float64)
    categorical_at(
        probabilities, uniforms, chosen=chosen, one_hot=one_hot, settings=ReduceSettings(32, 16)
    )
    assert torch.equal(chosen, categorical_at_reference(probabilities, uniforms))
    assert torch.equal(one_hot.argmax(1), chosen)
    assert torch.equal(one_hot.sum(1), torch.ones(65, dtype=torch.float64))


def test_shapes_are_checked():
    with pytest.raises(InternalError, match="one_hot of a categorical sample"):
        categorical(torch.zeros(3, 4), random_state(0), one_hot=torch.empty(4, 3))
    with pytest.raises(InternalError, match="drawn into matrices"):
        draw("sign", torch.empty(2, 2, 2), random_state(0))


def test_cost_and_space():
    assert cost(torch.empty(10, dtype=torch.float64)) == (250, 80)
    assert len(space()) > 1
