"""Draws inside kernels: the numbers of Philox without Triton, whatever the tile and the template."""

import math

import pytest
import torch
from matrices import assert_surroundings_untouched, matrix, result

from gncompile.errors import InternalError
from gncompile.runtime.draws import PhiloxDraws
from gncompile.triton_kernels.elementwise import ElementwiseSettings, elementwise
from gncompile.triton_kernels.gemm import gemm
from gncompile.triton_kernels.language import tl, triton  # noqa: F401 (the interpreter wants tl here)
from gncompile.triton_kernels.random import Draw
from gncompile.triton_kernels.reduce import ReduceSettings, itself, product, reduce
from gncompile.triton_kernels.sampling import advance, categorical, categorical_reference
from gncompile.triton_kernels.settings import MatrixSettings

SEED = 12345678901234
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64]


def expected(kind, shape, dtype, draws):
    out = torch.empty(shape, dtype=dtype)
    draws.fill(kind, out)
    return out


def assert_same(got, wanted, kind):
    """Uniform numbers and signs bit by bit; Box and Muller's functions round a few times."""
    eps = 16 * torch.finfo(wanted.dtype).eps if kind == "normal" else 0.0
    torch.testing.assert_close(got, wanted, rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["uniform", "normal", "sign"])
@pytest.mark.parametrize("shape", [(13, 9), (1, 1), (5, 1)])
def test_numbers_are_those_of_the_reference_for_any_tile(shape, kind, dtype):
    state = torch.tensor([SEED, 3])
    draws = PhiloxDraws(SEED, CPU)
    draws.state[1] = 3
    wanted = expected(kind, shape, dtype, draws)
    for settings in (ElementwiseSettings(4, 4), ElementwiseSettings(1, 16)):
        out = result(*shape, dtype)
        elementwise(itself, (Draw(kind, shape, state),), (out,), settings=settings)
        assert_same(out, wanted, kind)
        assert_surroundings_untouched(out)


@pytest.mark.parametrize("counter", [0, (1 << 32) - 1, (5 << 32) + 7])
def test_draws_of_a_phase_are_numbered_and_then_counted(counter):
    draws = PhiloxDraws(SEED, CPU)
    draws.state[1] = counter
    state = draws.state.clone()
    for _ in range(2):
        outputs = [torch.empty(7, 5) for _ in range(2)]
        for number in (1, 0):  # in any order
            elementwise(itself, (Draw("uniform", (7, 5), state, number),), (outputs[number],))
        advance(state, 2)
        for out in outputs:
            assert torch.equal(out, expected("uniform", (7, 5), torch.float32, draws))
    assert torch.equal(state, draws.state)


def test_numbers_change_with_the_seed():
    first, second = torch.empty(7, 5), torch.empty(7, 5)
    elementwise(itself, (Draw("uniform", (7, 5), torch.tensor([1, 0])),), (first,))
    elementwise(itself, (Draw("uniform", (7, 5), torch.tensor([2, 0])),), (second,))
    assert not bool((first == second).any())


@pytest.mark.parametrize("over", ["all", "rows", "columns"])
def test_sums_take_draws(over):
    a, state = matrix(33, 17), torch.tensor([SEED, 0])
    wanted = a * expected("sign", a.shape, a.dtype, PhiloxDraws(SEED, CPU))
    dimensions = {"all": (0, 1), "rows": (0,), "columns": (1,)}[over]
    total = wanted.double().sum(dimensions).to(a.dtype)
    out = torch.full_like(total, math.nan)
    inputs = (a, Draw("sign", (33, 17), state))
    reduce(product, inputs, out, over=over, settings=ReduceSettings(8, 16))
    # The terms are exact, and summed in float64 by both.
    torch.testing.assert_close(out, total, rtol=1e-6, atol=1e-6)


@triton.jit
def noisy(value, noise):
    return value + noise, noise


def test_epilogues_of_products_take_draws():
    a, b = matrix(33, 17, torch.float64), matrix(17, 19, torch.float64)
    out, noise = result(33, 19, torch.float64), result(33, 19, torch.float64)
    draw = Draw("normal", (33, 19), torch.tensor([SEED, 0]))
    settings = MatrixSettings(16, 16, 16)
    gemm(a, b, out, epilogue=noisy, epilogue_inputs=(draw,), outputs=(noise,), settings=settings)
    wanted = expected("normal", (33, 19), torch.float64, PhiloxDraws(SEED, CPU))
    assert_same(noise, wanted, "normal")
    torch.testing.assert_close(out, a @ b + wanted, rtol=1e-12, atol=1e-12)


@triton.jit
def residual(sample, p, scale):
    return scale * (p - sample), sample


def residual_reference(sample, p, scale):
    return scale * (p - sample), sample


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("columns", [1, 7, 40])
def test_categorical_samples(columns, drawn):
    p = torch.softmax(matrix(65, columns, torch.float64), 1)
    scale = matrix(65, 1, torch.float64)
    uniform = expected("uniform", (65, 1), torch.float64, PhiloxDraws(SEED, CPU))
    if not drawn:
        uniform[0] = 1.0  # beyond the last cumulated probability: the last class
    found, wanted = ([result(65, columns, torch.float64) for _ in range(2)] for _ in range(2))
    categorical_reference(
        p, uniform, wanted[0], epilogue=residual_reference, epilogue_inputs=(p, scale),
        outputs=wanted[1:],
    )  # fmt: skip
    u = Draw("uniform", (65, 1), torch.tensor([SEED, 0])) if drawn else uniform
    categorical(
        p, u, found[0], epilogue=residual, epilogue_inputs=(p, scale), outputs=found[1:],
        settings=ReduceSettings(32, 16),
    )  # fmt: skip
    for got, expected_ in zip(found, wanted, strict=True):
        assert torch.equal(got, expected_)
        assert_surroundings_untouched(got)
    plain = result(65, columns, torch.float64)
    categorical(p, u, plain)
    assert torch.equal(plain, wanted[1])
    assert torch.equal(plain.sum(1), torch.ones(65, dtype=torch.float64))


def test_shapes_are_checked():
    state = torch.tensor([0, 0])
    with pytest.raises(InternalError, match="an output of a categorical sample"):
        categorical(torch.zeros(3, 4), torch.zeros(3, 1), torch.empty(4, 3))
    with pytest.raises(InternalError, match="drawn as matrices"):
        # A batch of matrices, for the transposed operand cannot be joined: its items would have equal draws.
        operands = torch.zeros(2, 3, 4).mT, Draw("sign", (2, 4, 3), state)
        elementwise(product, operands, (torch.empty(2, 4, 3),))
    with pytest.raises(InternalError, match="fits no tile"):
        elementwise(product, (torch.zeros(3, 4), Draw("sign", (3, 1), state)), (torch.empty(3, 4),))
