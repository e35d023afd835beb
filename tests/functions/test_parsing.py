"""The whitelist parser: what it reads, and what it refuses."""

import math

import pytest
import sympy
from sympy import Expr, Rational, exp, pi, sqrt, tanh

from gncompile.errors import ExpressionError
from gncompile.functions import select, sigmoid, softplus
from gncompile.functions.declarations import derivative_size, tree_size
from gncompile.functions.parsing import (
    FUNCTIONS,
    MAX_DEPTH,
    MAX_LENGTH,
    parse_expression,
)
from gncompile.functions.transfer import called_by_name, define_transfer

x, y = sympy.symbols("x y", real=True)
SYMBOLS = {"x": x, "y": y}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x*sigmoid(1.702*x)", x * sigmoid(Rational(1702, 1000) * x)),
        ("x*tanh(softplus(x))", x * tanh(softplus(x))),
        ("-x**2/2", -(x**2) / 2),
        ("1e-3*x + 2", x / 1000 + 2),
        ("sqrt(2/pi)", sqrt(2 / pi)),
        ("exp(-(x - y)**2)", exp(-((x - y) ** 2))),
        ("select(x > 0, x, 0.01*x)", select(x, x, x / 100)),
        ("select(x, x, y)", select(x, x, y)),
        ("where(x >= 1, 1, x)", select(1 - x, x, 1)),
        ("where(x < y, 1, x)", select(y - x, 1, x)),
        ("where(x <= y, 1, x)", select(x - y, x, 1)),
        ("relu(x)", select(x, x, 0)),
        ("  x\n  + y", x + y),
        ("+x", x),
        ("x**0.5", sqrt(x)),
        ("1/3", Rational(1, 3)),
    ],
)
def test_reads(text, expected):
    assert parse_expression(text, SYMBOLS) == expected


REFUSED = {
    "x.__class__": "an attribute access has no place",
    "__import__('os').system('ls')": "only a plain function name can be called",
    "__import__('os')": "the function '__import__' is unknown",
    "eval('1')": "the function 'eval' is unknown",
    "(lambda: 1)()": "only a plain function name",
    "lambda: x": "a lambda has no place",
    "[x for x in y]": "a ListComp has no place",
    "x[0]": "an index has no place",
    "'text'": "the str 'text' has no place",
    "f'{x}'": "a formatted string has no place",
    "True": "the bool 'True' has no place",
    "None": "the NoneType 'None' has no place",
    "3j": "the complex '3j' has no place",
    "x if x else y": "an if expression has no place",
    "x and y": "a logical operator has no place",
    "(x := 1)": "an assignment has no place",
    "x > 1": "a comparison outside select",
    "select(0 < x < 1, x, y)": "a condition compares two expressions",
    "select(x == y, x, y)": "a condition compares two expressions",
    "select(x)": "select takes 3 arguments, not 1",
    "x // y": "a BinOp has no place",
    "x ^ 2": r"write x\*\*2",
    "sin(x, y)": "sin cannot be called so",
    "sin(x, evaluate=0)": "sin takes no parameter 'evaluate'",
    "sin(*x)": "a starred argument",
    "sin(**x)": "a starred argument",
    "tanh": "the function 'tanh' is used without arguments",
    "sigmod(x)": "Did you mean 'sigmoid'",
    "foo + x": r"the name 'foo' is unknown",
    "x y": "the expression is malformed",
    "x +": "the expression is malformed",
    "x; y": "the expression is malformed",
    "import os": "the expression is malformed",
    "": "non-empty",
    "x\0": "the expression (cannot be read|is malformed)",
    "1/0": "a division by zero",
    "x/(1 - 1)": "a division by zero",
    "0**(-1)": "a division by zero",
    "sqrt(-1)": "not a finite real number",
    "log(-1)*x": "not a finite real number",
    "log(0)": "not a finite real number",
    "x**log(0)": "not a finite real number",
    "9**9**9": "the exponent 387420489 is beyond",
    "x**1000": "the exponent 1000 is beyond",
    "x**-1000": "the exponent -1000 is beyond",
    "((x**60)**60)**60": "nested powers reach beyond",
    "1e300**32": "a power of numbers too large",
    "((9**64)**64)**64": "too large for floating point",
    "1e400": "a number too large",
    "9" * 3000: "a number too large",
    "exp(exp(exp(exp(9))))": "a number too large",
    "(" * 1000 + "x" + ")" * 1000: "the expression is malformed",
    "sin(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1): "nested more than 32 deep",
    "-" * 400 + "x": "nested more than 32 deep|cannot be read|malformed",
    "x" + "+x" * 1999: "more than 500 parts|cannot be read",
    "x" + "+x" * MAX_LENGTH: "at most 4000 are allowed",
    "x" + "**x" * 100: "nested more than 32 deep",
    "select(x, " * 40 + "x" + ", x)" * 40: "nested more than 32 deep",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_refuses_and_says_why(text):
    with pytest.raises(ExpressionError, match=REFUSED[text]):
        parse_expression(text, SYMBOLS)


def test_the_largest_allowed_expressions_are_read():
    waves = parse_expression("+".join(f"sin({i}*x)" for i in range(80)), SYMBOLS)
    assert waves == sum(sympy.sin(i * x) for i in range(80))
    nested = parse_expression("select(x, " * 15 + "x" + ", y*x)" * 15, SYMBOLS)
    assert nested.subs({x: -2, y: 3}) == -6
    assert nested.subs({x: 2, y: 3}) == 2
    assert parse_expression("x" + "+x" * 249, SYMBOLS) == 250 * x
    deep = parse_expression("softplus(" * 30 + "x" + ")" * 30, SYMBOLS)
    assert float(deep.subs(x, 0)) == pytest.approx(math.log(31))  # e^softplus(u) = 1 + e^u


def test_the_error_points_at_the_column():
    with pytest.raises(ExpressionError) as caught:
        parse_expression("x + 2*foo(x)", SYMBOLS, where="model.toml, line 3")
    assert str(caught.value) == (
        "the function 'foo' is unknown\n"
        "  where:      model.toml, line 3, column 7 of 'x + 2*foo(x)'\n"
        "  what to do: the functions are " + ", ".join(_functions())
    )


def _functions():
    from gncompile.functions.parsing import FUNCTIONS

    return sorted(FUNCTIONS)


def test_columns_count_characters_and_leading_blanks():
    with pytest.raises(ExpressionError, match="column 8 of"):
        parse_expression("  μ*xx+foo", {"μ": y, "xx": x})


def test_symbols_shadow_nothing_they_are_not_given():
    with pytest.raises(ExpressionError, match="The names here are x, pi"):
        parse_expression("x*q1", {"x": x})


def test_functions_can_be_limited():
    with pytest.raises(ExpressionError, match="the function 'sin' is unknown"):
        parse_expression("sin(x)", SYMBOLS, {"tanh": tanh})


def tower(name: str, depth: int, more: str = "") -> str:
    return f"{name}(" * depth + "x" + f"{more})" * depth


@pytest.mark.parametrize(
    "text",
    [
        *(tower(name, 30) for name in ("relu", "gelu", "mish", "silu", "softsign", "hardswish")),
        *(tower(name, 30, ", 0.3*x + 1") for name in ("maximum", "min", "max")),
        tower("clamp", 16, ", 0, 1"),
        tower("relu", 30, " - 1"),
        "relu(" * 10 + "gelu(" * 10 + "x" + ")" * 20,
    ],
)
def test_towers_are_refused_by_their_size_as_graphs(text: str) -> None:
    """Written out they have up to 3³⁰ parts; each level is counted before anything walks it."""
    with pytest.raises(ExpressionError, match=r"parts, its functions written out; at most 1000"):
        parse_expression(text, {"x": x})


def test_a_chain_of_declarations_is_bounded() -> None:
    functions = dict(FUNCTIONS)
    with pytest.raises(ExpressionError, match="parts, its functions written out"):
        for i in range(12):
            before = f"f{i - 1}"
            text = f"{before}(x)*{before}(x) + {before}({before}(x))" if i else "tanh(x) + x*x"
            function = define_transfer(f"f{i}", text, {}, functions=functions)
            functions[f"f{i}"] = called_by_name(function, f"f{i}")


def test_sizes_are_counted_once_for_each_shared_part() -> None:
    e: Expr = x
    for _ in range(60):
        e = select(e, e, 0)
    assert tree_size(e, {}) == 3 * 2**60 - 2  # each level: itself, twice the one before, and a zero
    assert derivative_size(e, (x,)) > 2**60


def test_a_condition_on_constants_has_a_sign() -> None:
    x = sympy.Symbol("x", real=True)
    assert parse_expression("select(sqrt(2) - 1, x, 2*x)", {"x": x}) == x
    with pytest.raises(ExpressionError, match="whose sign cannot be told"):
        parse_expression("select(sin(1)**2 + cos(1)**2 - 1, x, 2*x)", {"x": x})
