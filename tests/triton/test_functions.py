"""Generated device functions and the elementary functions below them, against mpmath."""

import mpmath
import numpy as np
import pytest
import sympy
import torch

from gncompile.emit.triton_functions import kernels_module, triton_function
from gncompile.errors import InternalError
from gncompile.functions import erfc, select, sigmoid
from gncompile.functions.expressions import evaluate
from gncompile.functions.transfer import ARGUMENT, transfer, transfer_names
from gncompile.runtime.source_files import load_source
from gncompile.triton_kernels import accurate, fit_polynomials, polynomials
from gncompile.triton_kernels.elementwise import elementwise
from gncompile.triton_kernels.language import tl, triton

x, y = sympy.symbols("x y", real=True)


@triton.jit
def apply_kernel(inputs, out, size, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = FUNCTION(tl.load(inputs + at, mask=at < size, other=1.0))
    tl.store(out + at, value, mask=at < size)


def applied(function, values):
    out = torch.full_like(values, torch.nan)
    with np.errstate(all="ignore"):  # branches that are not taken divide by zero
        apply_kernel[(1,)](values, out, len(values), function, triton.next_power_of_2(len(values)))
    return out


def grid(dtype):
    """Magnitudes from the smallest subnormal to the largest number, and evenly up to 30; of both signs."""
    ends = (-44.8, 38.4) if dtype == torch.float32 else (-323.2, 308.2)
    points = torch.cat(
        [
            torch.logspace(*ends, 90, dtype=torch.float64),
            torch.linspace(0.013, 30, 120, dtype=torch.float64),
            torch.linspace(31, 110 if dtype == torch.float32 else 760, 25, dtype=torch.float64),
        ]
    )
    return torch.cat([points, -points]).to(dtype)


DEFINITIONS = {
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log1p": mpmath.log1p,
    "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
    "softplus": lambda v: mpmath.log1p(mpmath.exp(v)),
    "tanh": mpmath.tanh,
    "sinh": mpmath.sinh,
    "cosh": mpmath.cosh,
    "asinh": mpmath.asinh,
    "atan": mpmath.atan,
    "tan": mpmath.tan,
    "erfc": mpmath.erfc,
    "sqrt": mpmath.sqrt,
}
DOMAINS = {"log1p": lambda v: v > -1, "sqrt": lambda v: v > 0}
FLAT_FROM = 3000
"""Beyond this magnitude the exponential functions have long reached 0, ±1, themselves or infinity."""
EXPONENTIAL = {"exp", "expm1", "sigmoid", "softplus", "tanh", "sinh", "cosh", "erfc"}


def ulps(got, exact, dtype):
    """Distance in units of the last place of ``exact``, subnormal places included."""
    info = torch.finfo(dtype)
    digits, lowest = (24, -126) if dtype == torch.float32 else (53, -1022)
    if abs(exact) > mpmath.mpf(info.max) * (1 + mpmath.mpf(2) ** -(digits + 1)):
        return 0.0 if got == float(mpmath.sign(exact)) * float("inf") else float("inf")
    if not np.isfinite(got):
        return float("inf")
    exponent = lowest if exact == 0 else max(int(mpmath.floor(mpmath.log(abs(exact), 2))), lowest)
    return float(abs(mpmath.mpf(got) - exact) / mpmath.mpf(2) ** (exponent - digits + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_elementary_functions_keep_their_digits(name, dtype):
    values = grid(dtype)
    values = values[DOMAINS[name](values)] if name in DOMAINS else values
    if name in EXPONENTIAL:
        values = values[values.abs() < FLAT_FROM]
    got = applied(getattr(accurate, name), values)
    worst = 0.0, 0.0
    # tan of a large argument needs its position within a period: as many digits as the number has.
    with mpmath.workdps(360 if name == "tan" else 40):
        for value, result in zip(values.tolist(), got.tolist(), strict=True):
            exact = DEFINITIONS[name](mpmath.mpf(value))
            worst = max(worst, (ulps(result, exact, dtype), value))
    # The interpreter's division and logarithm are right to an ulp; measured: 2.5 (erfc near 1/2).
    assert worst[0] <= 3, worst


INF, NAN = float("inf"), float("nan")
AT_SPECIAL = {  # at 0, -0, ∞, -∞
    "exp": (1.0, 1.0, INF, 0.0),
    "expm1": (0.0, -0.0, INF, -1.0),
    "log1p": (0.0, -0.0, INF, NAN),
    "sigmoid": (0.5, 0.5, 1.0, 0.0),
    "softplus": (np.log(2), np.log(2), INF, 0.0),
    "tanh": (0.0, -0.0, 1.0, -1.0),
    "sinh": (0.0, -0.0, INF, -INF),
    "cosh": (1.0, 1.0, INF, INF),
    "asinh": (0.0, -0.0, INF, -INF),
    "atan": (0.0, -0.0, np.pi / 2, -np.pi / 2),
    "tan": (0.0, -0.0, NAN, NAN),
    "erfc": (1.0, 1.0, 0.0, 2.0),
    "sqrt": (0.0, -0.0, INF, NAN),
    "sign": (0.0, -0.0, 1.0, -1.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", AT_SPECIAL)
def test_zeros_infinities_and_nan(name, dtype):
    got = applied(getattr(accurate, name), torch.tensor([0.0, -0.0, INF, -INF, NAN], dtype=dtype))
    expected = torch.tensor([*AT_SPECIAL[name], NAN], dtype=dtype)
    assert torch.equal(got.isnan(), expected.isnan())
    number = ~expected.isnan()
    torch.testing.assert_close(got[number], expected[number], rtol=1e-7, atol=0)
    assert torch.equal(got[number].signbit(), expected[number].signbit())


def test_log1p_ends_at_minus_one():
    got = applied(accurate.log1p, torch.tensor([-1.0, -2.0]))
    assert got[0] == -INF
    assert got[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_power_loses_half_an_ulp_of_the_exponent_only(dtype):
    values = torch.logspace(-30, 30, 61, dtype=torch.float64).to(dtype)
    out = torch.empty_like(values)
    elementwise(load(triton_function("f", x ** sympy.Rational(7, 10), [x])).f, [values], [out])
    exact = values.double() ** 0.7
    bound = (2 + (0.7 * values.double().log()).abs()) * torch.finfo(dtype).eps
    assert bool(((out.double() / exact - 1).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hypot_neither_overflows_nor_underflows(dtype):
    large, small = torch.finfo(dtype).max / 4, torch.finfo(dtype).smallest_normal * 8
    a = torch.tensor([3 * large / 4, 3 * small, 0.0, -3.0, INF, NAN], dtype=dtype)
    b = torch.tensor([large, -4 * small, -0.0, 4.0, 1.0, 1.0], dtype=dtype)
    out = torch.empty_like(a)
    elementwise(pair_hypot, [a, b], [out])
    torch.testing.assert_close(out, torch.hypot(a, b), rtol=1e-6, atol=0, equal_nan=True)


@triton.jit
def pair_hypot(a, b):
    return (accurate.hypot(a, b),)


def test_polynomials_are_those_of_their_derivation():
    with open(polynomials.__file__, encoding="utf-8") as file:
        assert file.read() == fit_polynomials.source()


# The printer ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GNCOMPILE_CACHE", str(tmp_path_factory.getbasetemp()))


def load(*functions):
    return load_source(kernels_module(functions), "functions")[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_vocabulary_equals_the_reference(dtype):
    parts = {}
    for name in transfer_names():
        rule = transfer(name).rule
        plain = [rule.value, rule.slopes[0], rule.seconds[0, 0]]
        parts[name] = triton_function(name, plain, [ARGUMENT]), plain, {}
        kept = f"{name}_kept"
        function = triton_function(kept, rule.kept_slopes, [ARGUMENT, rule.output])
        parts[kept] = function, list(rule.kept_slopes), {rule.output: rule.value}
    module = load(*(function for function, _, _ in parts.values()))
    values = torch.cat([torch.linspace(-9, 9, 40), torch.tensor([-60.0, 60.0, 0.25, 1e-8])])
    values = values.to(dtype)
    wide = {ARGUMENT: values.double()}
    for name, (_, expressions, outputs) in parts.items():
        given = [values] + [evaluate(e, wide).to(dtype) for e in outputs.values()]
        exact = wide | {
            symbol: tensor.double() for symbol, tensor in zip(outputs, given[1:], strict=True)
        }
        results = [torch.full_like(values, torch.nan) for _ in expressions]
        with np.errstate(all="ignore"):
            elementwise(getattr(module, name), given, results)
        for expression, result in zip(expressions, results, strict=True):
            expected = evaluate(expression, exact).expand_as(result)
            # Products and sums of a few rounded terms of size 10; x³ inside a sigmoid costs 300 eps.
            torch.testing.assert_close(
                result.double(), expected, rtol=600 * torch.finfo(dtype).eps,
                atol=300 * torch.finfo(dtype).eps, msg=lambda m, n=name: f"{n}: {m}",
            )  # fmt: skip


TEXTS = [
    (x, "return (x,)"),
    (sympy.Integer(3) / 4, "return (accurate.constant(x, 0.75),)"),
    (x - y / 2, "return (x - 0.5 * y,)"),
    (1 - x * y, "return (1.0 - x * y,)"),
    (x - (y - 1) * 2, "return (x - 2.0 * y + 2.0,)"),
    (x / (1 + y), "return (x / (y + 1.0),)"),
    (x**3, "return (x * x * x,)"),
    (select(x, 1, 0), "return (accurate.step(x, 1.0, 0.0),)"),
    (select(x, y, 0), "return (accurate.select(x, y, accurate.constant(x, 0.0)),)"),
    (x * erfc(-x) / 2, "return (0.5 * accurate.erfc(-x) * x,)"),
    (2**x, "return (accurate.exp(0.6931471805599453 * x),)"),
    (sympy.sqrt(y) / x, "return (accurate.sqrt(y) / x,)"),
]


@pytest.mark.parametrize(("expression", "expected"), TEXTS, ids=lambda v: str(v)[:30])
def test_text_is_what_a_person_would_write(expression, expected):
    text = triton_function("f", expression, [x, y], doc="f.").text
    assert text == f'@triton.jit\ndef f(x, y):\n    """f."""\n    {expected}\n'


def test_shared_values_are_named_and_explained():
    assert triton_function("silu", [x * sigmoid(x), sigmoid(x) + x], [x]).text.splitlines()[3:] == [
        "    sigmoid_x = accurate.sigmoid(x)  # sigmoid(x)",
        "    return sigmoid_x * x, x + sigmoid_x",
    ]


def test_numbers_stay_exact_in_float64():
    tenth = sympy.Rational(1, 10)
    expressions = [x * tenth, x + tenth, select(x, tenth, y), select(x, 1, tenth), tenth]
    module = load(triton_function("tenths", expressions, [x, y]))
    one = torch.ones(3, dtype=torch.float64)
    out = [torch.empty_like(one) for _ in expressions]
    elementwise(module.tenths, [one, one], out)
    assert [value[0].item() for value in out] == [0.1, 1.1, 0.1, 1.0, 0.1]


def test_parameters_get_legal_distinct_names():
    symbols = [sympy.Symbol(name, real=True) for name in ("tl", "a.b", "a_b", "lambda", "1st")]
    function = triton_function("f", sum(symbols), symbols)
    names = function.text.splitlines()[1][len("def f(") : -2].split(", ")
    assert names == ["tl_", "a_b", "a_b_", "lambda_", "_1st_"]
    values = [torch.full((2,), float(i)) for i in range(5)]
    out = torch.empty(2)
    elementwise(load(function).f, values, [out])
    assert out.tolist() == [10.0, 10.0]


def test_modules_have_equal_bytes_and_no_duplicates():
    f, g = (triton_function(name, x + 1, [x]) for name in "fg")
    assert kernels_module([f, g, f]) == kernels_module(iter([f, g]))
    with pytest.raises(InternalError, match="two different device functions are called 'f'"):
        kernels_module([f, triton_function("f", x + 2, [x])])


def test_unknown_symbols_and_functions_are_our_bug():
    with pytest.raises(InternalError, match="no variable was named for the symbol y"):
        triton_function("f", x * y, [x])
    with pytest.raises(InternalError, match="gamma reached the emitter"):
        triton_function("f", sympy.gamma(x), [x])
    with pytest.raises(InternalError, match="at least one tile"):
        triton_function("f", sympy.Integer(1), [])
