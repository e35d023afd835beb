"""Ahead-of-time tier: matrix kernels with default settings, for layers of the MNIST and CURVES autoencoders.

What is compiled is what would run, for GPUs that are not here. Each must fit its device, spill nothing, and
multiply with the instructions its precision is meant for.
"""

from itertools import pairwise

import pytest
import torch
import triton
import triton.language as tl

from gncompile.triton_kernels import gemm, settings
from gncompile.triton_kernels.congruence import congruence
from gncompile.triton_kernels.grouped_gemm import Problem, grouped_gemm, plan_group
from gncompile.triton_kernels.grouped_syrk import Moment, grouped_moments, plan_moments
from gncompile.triton_kernels.launches import padded_empty
from gncompile.triton_kernels.resources import resources
from gncompile.triton_kernels.syrk import cross_moment, syrk

TENSOR_CORES = {80: "mma", 90: "wgmma", 100: "tcgen05"}
TENSOR_MEMORY = 512  # columns, on compute capability 100
BATCH = 1000


@triton.jit
def sigmoid_and_slope(h):
    a = tl.sigmoid(h)
    return a, a * (1.0 - a)


def buffer(rows, columns, dtype=torch.float32):
    return padded_empty(rows, columns, torch.empty(0, dtype=dtype))


def check(launches, capability, instruction):
    """Every launch fits, and the last product among them uses ``instruction``."""
    used = [resources(launch, capability) for launch in launches]
    for each in used:
        assert each.spilled == 0, each
        assert not each.is_trap
        assert each.shared <= settings.SHARED_MEMORY[capability]
        assert each.tensor_memory <= TENSOR_MEMORY
    assert used[0].instructions[instruction] > 0, used[0].instructions
    others = {"mma", "wgmma", "tcgen05"} - {instruction}
    assert all(used[0].instructions[other] == 0 for other in others), used[0].instructions
    return used


def forward(dtype, precision):
    x, weight = buffer(BATCH, 784, dtype), buffer(1000, 785, dtype)
    out, slopes = buffer(BATCH, 1000, dtype), buffer(BATCH, 1000, dtype)
    return gemm.gemm.launches(
        x, weight[:, :-1], out, transpose_b=True, bias=weight[:, -1], epilogue=sigmoid_and_slope,
        outputs=[slopes], precision=precision,
    )  # fmt: skip


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "high"), (torch.bfloat16, "high")], ids=str
)
def test_forward_pass_on_tensor_cores(dtype, precision, capability):
    (used,) = check(forward(dtype, precision), capability, TENSOR_CORES[capability])
    assert used.copies[16] > 0
    assert used.copies[4] == 0, "rows are padded, so odd sizes still load 16 bytes at once"


@pytest.mark.parametrize("capability", [80, 90])
def test_forward_pass_in_full_float32(capability):
    (used,) = check(forward(torch.float32, "highest"), capability, "fma")
    assert used.copies[4] == 0


def test_forward_pass_in_float64():
    check(forward(torch.float64, "highest"), 90, "mma")


@pytest.mark.parametrize("capability", [80, 90])
def test_input_moment_of_a_wide_layer(capability):
    a, q = buffer(BATCH, 784), buffer(785, 785)
    launches = syrk.launches(a, q, alpha=1 / BATCH, homogeneous=True, precision="high")
    check(launches, capability, TENSOR_CORES[capability])


def test_input_moment_in_bfloat16():
    a, q = buffer(BATCH, 784, torch.bfloat16), buffer(785, 785)
    used, *_ = check(syrk.launches(a, q, alpha=1 / BATCH, homogeneous=True), 90, "wgmma")
    assert used.copies[4] == 0, "16-bit operands need no transposing on their way in"


def test_a_narrow_layer_splits_its_batch():
    v, x, gradient = buffer(BATCH, 6), buffer(BATCH, 25), buffer(6, 26)
    launches = cross_moment.launches(v, x, gradient, alpha=1 / BATCH, homogeneous=True)
    assert [launch.grid for launch in launches] == [(1, 7, 1), (1, 1)]
    check(launches, 90, "fma")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_unaligned_operands_without_tensor_cores(capability):
    """One narrow layer, whose rows are not padded, leaves no address of the group aligned."""
    sizes = [(1000, 784), (25, 6)]
    gradients = [
        Moment(torch.empty(BATCH, n), torch.empty(BATCH, m), torch.empty(n, m + 1))
        for n, m in sizes
    ]
    moments = plan_moments(gradients, homogeneous=True)
    products = plan_group(
        [Problem(torch.empty(n, m), torch.empty(m, m), torch.empty(n, m)) for n, m in sizes]
    )
    assert moments.settings.block_m == products.settings.block_m == 64
    check(grouped_moments.launches(moments, alpha=1 / BATCH), capability, "fma")
    check(grouped_gemm.launches(products), capability, "fma")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_curvature_step(precision, capability):
    weight, g = buffer(500, 1001)[:, :-1], buffer(500, 500)
    a, out = buffer(BATCH, 1000), buffer(1000, 1000)
    _, *launches = congruence.launches(weight, g, a, out, precision=precision)
    check(launches, capability, "fma" if precision == "highest" else TENSOR_CORES[capability])


def test_all_layers_in_one_launch():
    sizes = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    problems = [
        Problem(buffer(n, m + 1), buffer(m + 1, m + 1), buffer(n, m + 1))
        for m, n in pairwise(sizes)
    ]
    launches = grouped_gemm.launches(plan_group(problems, precision="high"))
    (used,) = check(launches, 90, "wgmma")
    assert used.copies[16] > 0
    assert used.copies[4] == 0, "the alignment of addresses from the table is known"


def test_all_input_moments_in_one_launch():
    sizes = [784, 1000, 500, 250, 30, 250, 500, 1000]
    moments = [Moment(buffer(BATCH, m), None, buffer(m + 1, m + 1)) for m in sizes]
    group = plan_moments(moments, homogeneous=True, precision="high")
    check(grouped_moments.launches(group, alpha=1 / BATCH), 90, "wgmma")


def test_the_space_has_settings_for_every_device_and_type():
    shape = settings.Shape(1000, 785, 1000)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found = gemm.space(shape, dtype, "high")
        assert found[0] == gemm.default_settings(shape, dtype, "high")
        assert len(found) == len(set(found))
        fitting = [each for each in found if settings.fits(each, dtype, "high")]
        assert len(fitting) > 10
        limit = min(settings.SHARED_MEMORY.values())
        assert all(settings.shared_memory(each, dtype) <= limit for each in fitting)
