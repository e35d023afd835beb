"""Moments of several layers in one launch against float64, in the interpreter."""

import pytest
import torch
from comparison import assert_close
from matrices import TOLERANCE, assert_surroundings_untouched, matrix, result

from gncompile.errors import InternalError
from gncompile.triton_kernels.grouped_syrk import (
    Moment,
    Settings,
    grouped_moments,
    grouped_moments_reference,
    plan_moments,
)

ONE = Settings(16, 16, 16)
SPLIT = Settings(16, 16, 16, split=3)
BOTH = pytest.mark.parametrize("settings", [ONE, SPLIT], ids=["one part", "three parts"])
SAMPLES = 70


def extended(x):
    return torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)


@BOTH
def test_input_moments_of_all_layers(settings):
    moments = [
        Moment(matrix(SAMPLES, size), None, result(size + 1, size + 1)) for size in (1, 33, 16)
    ]
    group = plan_moments(moments, homogeneous=True, settings=settings)
    for _ in range(2):  # the table serves any number of launches
        for m in moments:
            m.out.fill_(torch.nan)
        grouped_moments(group, alpha=1 / SAMPLES)
    for m in moments:
        x = extended(m.a)
        assert_close(m.out, x.mT @ x / SAMPLES, TOLERANCE[torch.float32])
        assert torch.equal(m.out, m.out.mT)
        assert_surroundings_untouched(m.out)


@BOTH
def test_weight_gradients_of_all_layers(settings):
    moments = [
        Moment(matrix(SAMPLES, d), matrix(SAMPLES, e), result(d, e + 1))
        for d, e in ((17, 33), (1, 16), (20, 1))
    ]
    group = plan_moments(moments, homogeneous=True, settings=settings)
    grouped_moments(group, alpha=1 / SAMPLES)
    for m in moments:
        gradient = m.a.double().mT @ extended(m.b) / SAMPLES
        assert_close(m.out, gradient, TOLERANCE[torch.float32])
        assert_surroundings_untouched(m.out)


def test_the_reference_and_the_default_settings_agree():
    sizes = ((17, 33), (5, 16))
    moments = [Moment(matrix(40, d), matrix(40, e), matrix(d, e)) for d, e in sizes]
    again = [Moment(m.a.double(), m.b.double(), m.out.double()) for m in moments]
    grouped_moments(plan_moments(moments), alpha=1 / 40)
    grouped_moments_reference(plan_moments(again), alpha=1 / 40)
    for one, other in zip(moments, again, strict=True):
        assert_close(one.out, other.out, TOLERANCE[torch.float32])


def test_tiles_that_are_not_square_are_refused():
    with pytest.raises(InternalError, match="square tiles"):
        plan_moments([Moment(matrix(3, 4), None, result(4, 4))], settings=Settings(16, 32, 16))
