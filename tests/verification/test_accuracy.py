"""The stated bounds hold for every registered function; the page that states them is the generator's."""

from __future__ import annotations

import math
import re

import mpmath
import pytest
import torch

import gncompile
from docs import accuracy_table
from docs.accuracy_table import (
    DTYPES,
    EXCEPTIONS,
    WHATS,
    Bound,
    bound,
    exception_key,
    primitives,
    worst,
)
from gncompile.errors import ExpressionError
from gncompile.functions.exact_values import ExactFunction, plain_slope
from gncompile.functions.transfer import (
    ARGUMENT,
    TransferFunction,
    transfer,
    transfer_names,
)
from gncompile.verification import accuracy
from gncompile.verification.accuracy import grid, measure_accuracy, run_reference

DENSITY = 40  # some 200 arguments a function and dtype; the generator takes seven times as many

NAMES = transfer_names()
"""Those of the vocabulary: what other tests declare comes later."""

PRIMITIVE_ULPS = 4
"""A backend whose own functions were worse than this could not keep the default bound."""


def assert_bounds(name, measured):
    for what in WHATS:
        stated = bound(name, what)
        for dtype in DTYPES:
            found = worst(measured, what, dtype, stated.measure)
            assert found.error <= stated.of(dtype), f"{what} in {dtype}: {found}, not {stated}"


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_keeps_the_stated_bounds(name):
    measured = measure_accuracy(name, density=DENSITY)
    assert {m.backend for m in measured.measurements} == set(accuracy.BACKENDS)
    for m in measured.measurements:
        assert m.points == len(grid(transfer(name), m.dtype, DENSITY)), "somewhere it has no value"
    assert_bounds(name, measured)


@pytest.mark.parametrize("function", list(primitives()), ids=lambda function: function.name)
def test_the_primitives_of_torch_are_accurate(function):
    measured = measure_accuracy(function, density=20)
    for dtype in DTYPES:
        assert worst(measured, "value", dtype).error <= PRIMITIVE_ULPS


def test_exceptions_are_of_registered_functions_once_and_have_a_reason():
    stated = [(name, what) for row in EXCEPTIONS for name in row.names for what in row.whats]
    assert len(stated) == len(set(stated))
    assert {name for name, _ in stated} <= set(NAMES)
    assert {what for _, what in stated} <= set(WHATS)
    assert all(row.bound.reason for row in EXCEPTIONS)


@pytest.mark.parametrize("name", ["tanh", "silu", "gelu_tanh", "logsigmoid", "softsign"])
def test_bounds_hold_where_the_target_flushes_to_zero(name, monkeypatch):
    def flushed(run):
        def call(*arguments):
            if not torch.set_flush_denormal(True):
                pytest.skip("this processor does not flush")
            try:
                return run(*arguments)
            finally:
                torch.set_flush_denormal(False)

        return call

    flushing = {name: flushed(run) for name, run in accuracy.BACKENDS.items()}
    monkeypatch.setattr(accuracy, "BACKENDS", flushing)
    assert_bounds(name, measure_accuracy(name, density=15))


# The page -------------------------------------------------------------------------------------------------


def rows(table, keys=1):
    page = accuracy_table.PAGE.read_text()
    body = re.search(rf"<!-- {table}: .*?-->\n(.*?)<!-- end", page, re.S)[1]
    cells = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| `")]
    return {tuple(row[:keys]): row[keys:] for row in cells}


def error(cell):
    return float(cell.split()[0])


def test_the_page_covers_every_function_and_primitive():
    assert list(rows("functions")) == [(f"`{name}`",) for name in NAMES]
    assert list(rows("primitives")) == [(f"`{f.name}`",) for f in primitives()]


def test_the_page_states_the_exceptions_and_keeps_them():
    listed = rows("exceptions", keys=2)
    assert list(listed) == [exception_key(row) for row in EXCEPTIONS]
    for row in EXCEPTIONS:
        *errors, stated, reason = listed[exception_key(row)]
        assert (stated, reason) == (str(row.bound), row.bound.reason)
        for cell, dtype in zip(errors, DTYPES, strict=True):
            assert error(cell) <= row.bound.of(dtype), (row.names, cell)


def test_the_page_marks_the_exceptions_and_keeps_the_default_for_all_others():
    for (name,), cells in rows("functions").items():
        for number, cell in enumerate(cells):
            excepted = bound(name.strip("`"), WHATS[number // 2]) != Bound()
            assert cell.endswith("*") == excepted, (name, cell)
            assert excepted or error(cell) <= 4, (name, cell)


# The measure ----------------------------------------------------------------------------------------------


def measured_with(monkeypatch, change, name="tanh"):
    """The errors of a backend whose values and slopes are the reference's, changed."""
    wrong = {"wrong": lambda e, values: change(run_reference(e, values).clone())}
    monkeypatch.setattr(accuracy, "BACKENDS", wrong)
    measured = measure_accuracy(name, density=10, dtypes=[torch.float64])
    return measured.measurements[0]


def test_an_error_of_ten_ulps_is_seen(monkeypatch):
    found = measured_with(monkeypatch, lambda y: y * (1 + 10 * torch.finfo(y.dtype).eps))
    assert 9 < found.ulps.error < 21  # an ulp is between eps/2 and eps of a number
    assert 1 < found.backward.error < found.ulps.error  # half of it may be the argument's, or more
    assert 4 < found.of_one.error < 21


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_infinitely_far(monkeypatch, wrong):
    def spoilt(y):
        y[7] = wrong
        return y

    found = measured_with(monkeypatch, spoilt)
    assert found.ulps.error == found.backward.error == found.of_one.error == math.inf
    assert found.ulps.at == grid(transfer("tanh"), torch.float64, 10)[7]


def test_overflow_is_right_where_the_mathematics_overflows():
    measured = measure_accuracy(TransferFunction("cube", ARGUMENT**3, ARGUMENT), density=10)
    assert all(m.ulps.error < 4 for m in measured.measurements if m.what == "value")


def test_the_grid_has_ends_kinks_and_both_zeros():
    for dtype in DTYPES:
        info = torch.finfo(dtype)
        points = grid(transfer("relu6"), dtype, 10)
        assert {6.0, 1.0, info.max, -info.max, info.smallest_normal} <= set(points)
        assert min(x for x in points if x > 0) == info.smallest_normal * info.eps
        assert {math.copysign(1, x) for x in points if x == 0} == {1.0, -1.0}
        up = torch.nextafter(torch.tensor(6, dtype=dtype), torch.tensor(7, dtype=dtype)).item()
        assert up in points


def test_the_grid_stays_in_the_domain():
    logarithm = next(f for f in primitives() if f.name == "log1p")
    assert min(grid(logarithm, torch.float32, 20)) == -1


@pytest.mark.parametrize("name", ["gelu", "mish", "logsigmoid", "gelu_tanh", "softsign", "elu"])
def test_exact_slopes_are_differences_of_exact_values(name):
    function = transfer(name)
    value = ExactFunction(function.expression, (ARGUMENT,))
    slope = ExactFunction(plain_slope(function.expression, ARGUMENT), (ARGUMENT,))
    step = 2.0**-20
    for x in (-20.5, -2.25, 0.75, 5.0):
        difference = (value(x + step) - value(x - step)) / (2 * step)
        # A central difference is off by step² f'''/6, and f''' is at most 20² times f' on these tails.
        assert mpmath.almosteq(difference, slope(x), rel_eps=400 * step**2)


def test_digits_that_cancel_are_found():
    """1 - tanh²(300) is 4 e^-600: nothing is left of it in 40 digits."""
    found = ExactFunction(1 - transfer("tanh").expression ** 2, (ARGUMENT,))(300.0)
    assert mpmath.almosteq(found, 4 * mpmath.exp(-600), rel_eps=1e-15)


# The public function --------------------------------------------------------------------------------------


def test_a_name_and_a_declaration_are_measured_alike():
    by_name = gncompile.measure_accuracy("silu", density=10)
    assert by_name == gncompile.measure_accuracy(transfer("silu"), density=10)
    assert str(by_name).splitlines()[0] == "silu"
    assert re.search(r"kept slope +torch +float64 +\S+ at \S+", str(by_name))
    with pytest.raises(ExpressionError, match="'sillu' is unknown"):
        gncompile.measure_accuracy("sillu")


def test_parameters_are_those_given():
    measured = measure_accuracy(transfer("leaky_relu", negative_slope=0.3), density=10)
    assert measured.function == "leaky_relu(negative_slope=0.3)"
    assert all(m.ulps.error <= 1 for m in measured.measurements)


def test_a_network_has_no_accuracy_of_a_function() -> None:
    model = torch.nn.Linear(2, 1)
    for more in (), (torch.ones(3, 2),):
        with pytest.raises(ExpressionError, match=r"given Linear.*\n.*metrics=\['accuracy'\]"):
            measure_accuracy(model, *more)  # type: ignore[arg-type]
