"""Matrix products against float64, in the interpreter."""

import pytest
import torch
import triton
import triton.language as tl
from comparison import assert_close
from matrices import STORED_BFLOAT16, TOLERANCE, assert_surroundings_untouched, matrix, result

from gncompile.errors import InternalError
from gncompile.triton_kernels.gemm import Settings, gemm, gemm_reference
from gncompile.triton_kernels.grouped_gemm import (
    Problem,
    grouped_gemm,
    grouped_gemm_reference,
    plan_group,
)
from gncompile.triton_kernels.launches import padded_operand
from gncompile.triton_kernels.tiles import scaled

SMALL = Settings(16, 16, 16)
WIDE = Settings(16, 32, 32, group=2)


@triton.jit
def value_and_slope(h, row, scalar):
    a = tl.sigmoid(h + row)
    return a * scalar, a * (1.0 - a)


def value_and_slope_of_tensors(h, row, scalar):
    a = torch.sigmoid(h + row)
    return a * scalar, a * (1 - a)


def test_padding_is_read_where_there_is_some_and_nowhere_else():
    """Reading 48 of 33 columns is fine in a buffer of 48, not in a slice of other rows' elements."""
    padded = matrix(20, 33)
    assert padded_operand(padded.mT).readable == 48
    assert padded_operand(padded).readable == 20, "rows have nothing after them"
    assert padded_operand(matrix(20, 33, pad=1).mT).readable == 33
    assert padded_operand(padded[:, 16:].mT).readable == 32, "the view begins inside a row"
    assert padded_operand(torch.zeros(20, 48)[:, 20:].mT).readable == 28, (
        "its last row would overrun"
    )


@triton.jit
def shifted_square(x, shift):
    return (x * x + shift,)


@pytest.mark.parametrize(
    ("rows", "columns", "inner"),
    [(1, 1, 1), (16, 17, 63), (65, 16, 17), (63, 64, 1), (130, 1, 16), (1, 127, 65), (17, 33, 130)],
)
def test_sizes(rows, columns, inner):
    a, b, out = matrix(rows, inner), matrix(inner, columns), result(rows, columns)
    gemm(a, b, out, settings=WIDE)
    assert_close(out, a.double() @ b.double(), TOLERANCE[torch.float32])
    assert_surroundings_untouched(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
def test_transposes_and_types(transpose_a, transpose_b, dtype):
    a = matrix(33, 20, dtype) if not transpose_a else matrix(20, 33, dtype)
    b = matrix(20, 35, dtype) if not transpose_b else matrix(35, 20, dtype)
    out = result(33, 35, torch.promote_types(dtype, torch.float32))
    gemm(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b, settings=SMALL)
    left = a.double().mT if transpose_a else a.double()
    right = b.double().mT if transpose_b else b.double()
    assert_close(out, left @ right, TOLERANCE[dtype])
    assert_surroundings_untouched(out)


def test_results_are_rounded_to_the_type_they_are_stored_in():
    a, b = matrix(17, 20, torch.bfloat16), matrix(20, 18, torch.bfloat16)
    out = result(17, 18, torch.bfloat16)
    gemm(a, b, out, settings=SMALL)
    assert_close(out, a.double() @ b.double(), STORED_BFLOAT16)


def test_any_strides():
    """Rows that are not padded, a slice that drops the bias column, and every second column."""
    a = matrix(20, 41, pad=1)[:, :-1]
    b = matrix(40, 66, pad=1)[:, ::2]
    out = result(20, 33, pad=1)
    gemm(a, b, out, settings=SMALL)
    assert_close(out, a.double() @ b.double(), TOLERANCE[torch.float32])
    assert_surroundings_untouched(out)


def test_bias_and_addend():
    a, b, bias, add = matrix(33, 20), matrix(20, 17), torch.randn(17), matrix(33, 17)
    out = result(33, 17)
    expected = a.double() @ b.double() + bias + add.double()
    gemm(a, b, out, bias=bias, add=add, settings=SMALL)
    assert_close(out, expected, TOLERANCE[torch.float32])
    gemm(a, b, add, bias=bias, add=add, settings=SMALL)
    assert_close(add, expected, TOLERANCE[torch.float32], "in place")


def test_a_float64_factor_keeps_its_digits():
    a, b, out = (matrix(5, 5, torch.float64) for _ in range(3))
    grouped_gemm(plan_group([Problem(a, b, out)], settings=SMALL), alpha=0.1)
    assert_close(out, 0.1 * (a @ b), TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_epilogue_with_two_results(dtype):
    a, b, row = matrix(33, 20, dtype), matrix(17, 20, dtype), torch.randn(17).to(dtype)
    scalar, wide = torch.tensor(0.7), torch.promote_types(dtype, torch.float32)
    values, slopes = result(33, 17, wide), result(33, 17, wide)
    options = {"transpose_b": True, "epilogue_inputs": [row, scalar]}
    gemm(a, b, values, **options, epilogue=value_and_slope, outputs=[slopes], settings=SMALL)
    expected, expected_slopes = torch.empty(2, 33, 17, dtype=torch.float64)
    gemm_reference(
        a.double(), b.double(), expected, **options,
        epilogue=value_and_slope_of_tensors, outputs=[expected_slopes],
    )  # fmt: skip
    assert_close(values, expected, TOLERANCE[dtype])
    assert_close(slopes, expected_slopes, TOLERANCE[dtype])
    assert_surroundings_untouched(slopes)


def test_an_unwanted_result_is_not_stored():
    a, b, out = matrix(17, 20), matrix(20, 17), result(17, 17)
    inputs = [torch.randn(17), torch.tensor(0.7)]
    gemm(a, b, out, epilogue=value_and_slope, epilogue_inputs=inputs, settings=SMALL)
    expected, _ = value_and_slope_of_tensors(a.double() @ b.double(), *inputs)
    assert_close(out, expected, TOLERANCE[torch.float32])


def test_batches():
    a, b = torch.randn(3, 17, 20), torch.randn(20, 18)
    add, out = torch.randn(3, 17, 18), torch.full((3, 17, 18), torch.nan)
    gemm(a, b, out, add=add, settings=SMALL)
    assert_close(out, a.double() @ b.double() + add, TOLERANCE[torch.float32], "one B for all")
    c = torch.randn(3, 20, 18)
    gemm(a.mT, c, out, transpose_a=True, settings=SMALL)
    assert_close(out, a.double() @ c.double(), TOLERANCE[torch.float32], "a B for each")


def test_default_settings_compute_the_same():
    a, b, out = matrix(65, 130), matrix(130, 33), result(65, 33)
    gemm(a, b, out)
    assert_close(out, a.double() @ b.double(), TOLERANCE[torch.float32])


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(InternalError, match="b has the wrong shape"):
        gemm(matrix(3, 4), matrix(5, 6), result(3, 6))
    with pytest.raises(InternalError, match="a has the wrong shape"):
        gemm(torch.zeros(3, 4, 5), matrix(5, 6), result(4, 6))
    with pytest.raises(InternalError, match="bias has the wrong shape"):
        gemm(matrix(3, 4), matrix(4, 6), result(3, 6), bias=torch.zeros(5))
    with pytest.raises(InternalError, match="fits no tile"):
        gemm(
            matrix(3, 4), matrix(4, 6), result(3, 6),
            epilogue=shifted_square, epilogue_inputs=[torch.zeros(5)],
        )  # fmt: skip


SHAPES = ((33, 17, 40), (1, 70, 16), (64, 1, 3))


def problems(dtype: torch.dtype) -> list[Problem]:
    """One product a layer, transposed as a forward pass has it, with every optional tensor."""
    return [
        Problem(
            matrix(m, k, dtype), matrix(n, k, dtype), result(m, n, dtype),
            bias=torch.randn(n).to(dtype), add=matrix(m, n, dtype),
            epilogue_inputs=(torch.randn(n).to(dtype), torch.tensor(0.7, dtype=dtype)),
            outputs=(result(m, n, dtype),),
        )
        for m, n, k in SHAPES
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_is_its_problems(dtype):
    given = problems(dtype)
    plan = plan_group(given, transpose_b=True, settings=SMALL)
    launches = grouped_gemm.launches(plan, alpha=0.3, epilogue=value_and_slope)
    for _ in range(2):  # the table serves any number of launches
        for problem in given:
            problem.out.fill_(torch.nan)
        for launch in launches:
            launch.run()
    for problem in given:
        pre = 0.3 * problem.a.double() @ problem.b.double().mT + problem.bias.double()
        pre += problem.add.double()
        expected = value_and_slope_of_tensors(pre, *(t.double() for t in problem.epilogue_inputs))
        for got, wanted in zip((problem.out, *problem.outputs), expected, strict=True):
            assert_close(got, wanted, TOLERANCE[dtype])
            assert_surroundings_untouched(got)


def test_the_reference_of_a_group_agrees():
    given, again = problems(torch.float64), problems(torch.float64)
    for one, other in zip(given, again, strict=True):
        for name in ("a", "b", "bias", "add"):
            getattr(other, name).copy_(getattr(one, name))
        other.epilogue_inputs[0].copy_(one.epilogue_inputs[0])
    grouped_gemm(plan_group(given, transpose_b=True, settings=SMALL), epilogue=value_and_slope)
    plan = plan_group(again, transpose_b=True, settings=SMALL)
    grouped_gemm_reference(plan, epilogue=value_and_slope_of_tensors)
    for one, other in zip(given, again, strict=True):
        assert_close(one.out, other.out, TOLERANCE[torch.float64])


def test_a_launch_keeps_the_tensors_of_its_table():
    """Only the table's addresses reach the kernel; the operands must not be freed before it runs."""
    out = result(17, 17)
    a, b = torch.full((17, 20), 2.0), torch.full((20, 17), 3.0)
    launches = grouped_gemm.launches(plan_group([Problem(a, b, out)], settings=SMALL))
    del a, b
    torch.randn(64, 17, 20)  # takes freed memory, if there is any
    for launch in launches:
        launch.run()
    assert_close(out, torch.full((17, 17), 120.0), TOLERANCE[torch.float32])


def test_a_column_is_told_from_a_full_input_by_the_wider_problems():
    """In the problem of one column, ``[3, 1]`` could be either."""
    given = [
        Problem(matrix(m, 4), matrix(4, n), result(m, n), epilogue_inputs=(torch.randn(m, 1),))
        for m, n in ((3, 1), (17, 20))
    ]
    grouped_gemm(plan_group(given, settings=SMALL), epilogue=scaled)
    for p in given:
        expected = p.epilogue_inputs[0].double() * (p.a.double() @ p.b.double())
        assert_close(p.out, expected, TOLERANCE[torch.float32])


def test_a_group_of_unlike_problems_is_refused():
    one = Problem(matrix(3, 4), matrix(4, 5), result(3, 5))
    other = Problem(matrix(3, 4), matrix(4, 5), result(3, 5), bias=torch.zeros(5))
    with pytest.raises(InternalError, match="same optional inputs"):
        plan_group([one, other])
    swapped = Problem(matrix(3, 4), matrix(4, 5), result(3, 5), add=matrix(3, 5))
    with pytest.raises(InternalError, match="same optional inputs"):
        plan_group([other, swapped])
    row, column = (
        Problem(matrix(3, 4), matrix(4, 5), result(3, 5), epilogue_inputs=(given,))
        for given in (torch.zeros(5), torch.zeros(3, 1))
    )
    with pytest.raises(InternalError, match="broadcasts its inputs differently"):
        grouped_gemm(plan_group([row, column]), epilogue=shifted_square)
    wide = Problem(matrix(3, 4, torch.float64), matrix(4, 5, torch.float64), result(3, 5))
    with pytest.raises(InternalError, match="mixes the types"):
        grouped_gemm(plan_group([one, wide]))
