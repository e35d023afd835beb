"""Moments of several layers in one launch against float64, in the interpreter."""

import pytest
import torch
import triton
import triton.language as tl
from comparison import assert_close
from matrices import TOLERANCE, assert_surroundings_untouched, matrix, result, symmetric

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


@triton.jit
def shifted_square(x, shift):
    return (x * x + shift,)


@triton.jit
def with_decay(gradient, weight):
    return gradient + tl.abs(weight) * 0.01, gradient


def extended(x):
    return torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)


@BOTH
def test_input_moments_of_all_layers_averaged_twice(settings):
    moments = [
        Moment(matrix(SAMPLES, size), None, symmetric(size + 1), (torch.randn(size),))
        for size in (1, 33, 16)
    ]
    expected = [m.out.double() for m in moments]
    group = plan_moments(moments, homogeneous=True, settings=settings)
    for _ in range(2):
        grouped_moments(group, average=0.75, alpha=1 / SAMPLES, prologue=shifted_square)
    for m, e in zip(moments, expected, strict=True):
        x = extended(m.a.double() ** 2 + m.prologue_inputs[0].double())
        wanted = 0.75**2 * e + (1 - 0.75**2) * x.mT @ x / SAMPLES
        assert_close(m.out, wanted, TOLERANCE[torch.float32])
        assert torch.equal(m.out, m.out.mT)
        assert_surroundings_untouched(m.out)


@BOTH
def test_weight_gradients_of_all_layers(settings):
    moments = [
        Moment(
            matrix(SAMPLES, d), matrix(SAMPLES, e), result(d, e + 1),
            epilogue_inputs=(matrix(d, e + 1),), outputs=(result(d, e + 1),),
        )
        for d, e in ((17, 33), (1, 16), (20, 1))
    ]  # fmt: skip
    group = plan_moments(moments, homogeneous=True, settings=settings)
    grouped_moments(group, alpha=torch.tensor(1 / SAMPLES), epilogue=with_decay)
    for m in moments:
        gradient = m.a.double().mT @ extended(m.b) / SAMPLES
        decay = 0.01 * m.epilogue_inputs[0].double().abs()
        assert_close(m.out, gradient + decay, TOLERANCE[torch.float32])
        assert_close(m.outputs[0], gradient, TOLERANCE[torch.float32])
        assert_surroundings_untouched(m.out)


def test_the_reference_and_the_default_settings_agree():
    sizes = ((17, 33), (5, 16))
    moments = [Moment(matrix(40, d), matrix(40, e), matrix(d, e)) for d, e in sizes]
    again = [Moment(m.a.double(), m.b.double(), m.out.double()) for m in moments]
    options = {"average": torch.tensor(0.75), "alpha": 1 / 40}
    grouped_moments(plan_moments(moments), **options)
    grouped_moments_reference(plan_moments(again), **options)
    for one, other in zip(moments, again, strict=True):
        assert_close(one.out, other.out, TOLERANCE[torch.float32])


def test_tiles_that_are_not_square_are_refused():
    with pytest.raises(InternalError, match="square tiles"):
        plan_moments([Moment(matrix(3, 4), None, result(4, 4))], settings=Settings(16, 32, 16))
