"""Where sympy ends and Triton begins: expressions as ``@triton.jit`` device functions of tiles.

A kernel template takes such a function as a compile-time argument and applies it to whatever tiles it holds::

    triton_function("silu_and_slope", [x*sigmoid(x), sigmoid(x)*(1 + x*sigmoid(-x))], [x])

    @triton.jit
    def silu_and_slope(x):
        sigmoid_x = accurate.sigmoid(x)  # sigmoid(x)
        return x * sigmoid_x, sigmoid_x * (x * accurate.sigmoid(-x) + 1.0)

Values used twice get a name, all others are written in place. A number stands only beside ``+ - * /``, where
Triton keeps it exact in float64; anywhere else it is a tile, because a bare number there becomes float32.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import sympy
from sympy import Add, Expr, Mul, Pow, Symbol

from ..base.names import LONGEST, RESERVED, identifier
from ..errors import InternalError
from ..functions.expressions import Product, root_of_squares
from ..functions.lowering import HALF, Lowering, Operand, Value
from ..functions.primitives import spelling
from .layout import filled
from .literals import comment, literal

HEADER = '''"""Device functions of one compiled program."""

import triton
import triton.language as tl

from gncompile.triton_kernels import accurate
'''

WIDTH = 96
INLINE = 40
"""A value whose text is longer than this gets a name even if it is used once."""


class DeviceFunction(NamedTuple):
    """A device function: its name, and the text that defines it."""

    name: str
    text: str


def kernels_module(functions: Iterable[DeviceFunction]) -> str:
    """The text of a module that holds ``functions``, each once.

    Triton's cache keys include the line a function starts at, so equal programs need equal layouts: the
    order given is kept.

    Raises:
        InternalError: Two different functions have the same name.
    """
    every = list(dict.fromkeys(functions))
    doubled = [name for name, count in Counter(f.name for f in every).items() if count > 1]
    if doubled:
        raise InternalError(f"two different device functions are called {doubled[0]!r}")
    return "\n\n".join([HEADER, *(f.text for f in every)])


def triton_function(
    name: str, expressions: Expr | Sequence[Expr], symbols: Sequence[Symbol], doc: str = ""
) -> DeviceFunction:
    """A device function ``name(tiles of symbols) -> tuple of tiles of the expressions``.

    The result is always a tuple. A tile has the broadcast shape of the symbols it depends on, a constant
    that of the first symbol. All tiles share one dtype, float32 or float64.

    Args:
        name: A Python identifier.
        expressions: What to compute, in the primitives of ``gncompile.functions``.
        symbols: The parameters in order; at least one.
        doc: First line of the docstring; the formulas when empty.

    Raises:
        InternalError: An expression has another symbol, or a function that is not a primitive.
    """
    given = [expressions] if isinstance(expressions, Expr) else expressions
    outputs = [sympy.sympify(e) for e in given]
    parameters = _parameter_names(symbols)
    lowering = _TritonLowering(parameters)
    results = [lowering.lower(e) for e in outputs]
    lines = _Text(lowering.values, results, parameters).lines()
    doc = doc or "; ".join(_formula(e) for e in outputs)
    doc = doc if len(doc) <= WIDTH else doc[: WIDTH - 1] + "…"
    body = [f'"""{comment(doc)}"""', *lines]
    head = ["@triton.jit", *filled(f"def {name}(", list(parameters.values()), "):", WIDTH + 4, 8)]
    return DeviceFunction(name, "\n".join([*head, *(f"    {line}" for line in body), ""]))


def _parameter_names(symbols: Sequence[Symbol]) -> dict[Symbol, str]:
    if not symbols:
        raise InternalError("a device function needs at least one tile to take its shape from")
    names: dict[Symbol, str] = {}
    for symbol in symbols:
        plain = re.sub(r"\W", "_", symbol.name[:LONGEST], flags=re.ASCII).lstrip("_")
        plain = f"{plain}_" if plain in RESERVED or not plain.isidentifier() else plain
        plain = plain if plain.isidentifier() else f"_{plain}"
        while plain in names.values():
            plain += "_"
        names[symbol] = plain
    return names


SUM, PRODUCT, SIGN, ATOM = range(4)
"""How tightly the outermost operation of a text binds."""

ARITHMETIC: dict[str, tuple[str, tuple[int, ...], int]] = {
    # Without parentheses only on the left: floating-point sums are not associative.
    "add": ("{0} + {1}", (SUM, PRODUCT), SUM),
    "sub": ("{0} - {1}", (SUM, PRODUCT), SUM),
    "mul": ("{0} * {1}", (PRODUCT, SIGN), PRODUCT),
    "div": ("{0} / {1}", (PRODUCT, SIGN), PRODUCT),
    "reciprocal": ("1.0 / {0}", (SIGN,), PRODUCT),
    "neg": ("-{0}", (SIGN,), SIGN),
}
"""Text of an operation, how tightly its operands have to bind, and how tightly it binds itself."""

STEP = "accurate.step"
"""The choice between two numbers."""

POWERS = {"sqrt": "accurate.sqrt", "pow": "accurate.power"}


class _TritonLowering(Lowering):
    """Powers of numbers by ``exp``, and half powers by roots, exact to a rounding as no ``power`` is."""

    def power(self, e: Pow) -> Operand:
        base, exponent = e.base, e.exp
        if base.is_number:
            return self.lower(sympy.exp(exponent * sympy.log(base), evaluate=False))
        halves = (2 * exponent).is_Integer and not exponent.is_Integer and abs(exponent) != HALF
        if not halves or root_of_squares(base):
            return super().power(e)
        if exponent < 0:
            return self.value("reciprocal", self.lower(base**-exponent), meaning=e)
        whole, root = self.lower(base ** (exponent - HALF)), self.lower(sympy.sqrt(base))
        return self.value("mul", whole, root, meaning=e)


class _Text:
    """Values as statements: what is used once is written in place."""

    def __init__(
        self, values: list[Value], results: list[Operand], names: Mapping[Symbol, str]
    ) -> None:
        self.values, self.results, self.names = values, results, names
        self.taken = {*names.values(), *RESERVED}
        read = [o for value in values for o in value.operands] + results
        self.uses = Counter(operand for operand in read if isinstance(operand, int))
        self.texts: dict[int, tuple[str, int]] = {}

    def lines(self) -> list[str]:
        """The body of the function."""
        statements = []
        for number, value in enumerate(self.values):
            text, binds = self.written(value)
            if self.uses[number] > 1 or (len(text) > INLINE and not self.is_result(number)):
                name = self.name(value.meaning)
                statements += self.statement(name, text, value)
                text, binds = name, ATOM
            self.texts[number] = text, binds
        return statements + self.returned()

    def is_result(self, number: int) -> bool:
        return any(result is number for result in self.results)

    def statement(self, name: str, text: str, value: Value) -> list[str]:
        """``name = text`` with its meaning, if there is room for it."""
        if len(line := f"{name} = {text}") <= WIDTH:
            return [_with_comment(line, value.meaning)]
        return self.broken(f"{name} = ", text, value, "")

    def broken(self, before: str, text: str, value: Value, after: str) -> list[str]:
        """``before text after``, broken between the operands of a call if that is too long."""
        line = before + text + after
        function, called, _ = text.partition("(")
        one = len(value.operands) < 2 or value.op in ARITHMETIC or function == STEP
        if len(line) <= WIDTH or one:
            return [line]
        operands = list(map(self.tile, value.operands))
        return filled(before + function + called, operands, f"){after}", WIDTH)

    def written(self, value: Value) -> tuple[str, int]:
        """The text of a value and how tightly it binds."""
        op, operands = value.op, value.operands
        if op == "add" and isinstance(operands[1], float) and operands[1] < 0:
            op, operands = "sub", (operands[0], -operands[1])
        if op in ARITHMETIC:
            text, needs, binds = ARITHMETIC[op]
            return text.format(*map(self.operand, operands, needs)), binds
        if op == "select" and all(isinstance(o, float) for o in operands[1:]):
            texts = [self.tile(operands[0]), *(literal(o) for o in operands[1:])]
            return f"{STEP}({', '.join(texts)})", ATOM
        function = POWERS.get(op) or spelling(value.meaning).triton
        return f"{function}({', '.join(map(self.tile, operands))})", ATOM

    def tile(self, operand: Operand) -> str:
        """``operand``, a constant as a tile."""
        if isinstance(operand, float):
            like = next(iter(self.names.values()))
            return f"accurate.constant({like}, {literal(operand)})"
        return self.operand(operand, SUM)

    def operand(self, operand: Operand, needs: int) -> str:
        if isinstance(operand, Symbol):
            return self.names[operand]
        text, binds = (
            (literal(operand), SIGN if operand < 0 else ATOM)
            if isinstance(operand, float)
            else self.texts[operand]
        )
        return text if binds >= needs else f"({text})"

    def returned(self) -> list[str]:
        texts = list(map(self.tile, self.results))
        line = f"return {', '.join(texts)}" if len(texts) > 1 else f"return ({texts[0]},)"
        if len(line) <= WIDTH:
            return [line]
        found = ["return ("]
        for result, text in zip(self.results, texts, strict=True):
            if isinstance(result, int) and self.uses[result] == 1:  # written in place
                pieces = self.broken("", text, self.values[result], ",")
                found += [f"    {piece}" for piece in pieces]
            else:
                found.append(f"    {text},")
        return [*found, ")"]

    def name(self, meaning: Expr) -> str:
        base = _describe(meaning)
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name


def _with_comment(statement: str, meaning: Expr) -> str:
    line = f"{statement}  # {comment(_formula(meaning))}"
    return line if len(line) <= WIDTH else statement


def _formula(e: Expr) -> str:
    """``str(e)``, with decimals for fractions nobody can read."""
    long = {r: sympy.Float(r, 15) for r in e.atoms(sympy.Rational) if r.q > 1000}
    return str(e.xreplace(long))


@functools.cache
def _describe(e: Expr) -> str:
    """A name for the value of ``e``: ``tanh_x``, ``x_squared``, ``product``, …"""
    plain = identifier(e.args[0].name) if e.args and isinstance(e.args[0], Symbol) else ""
    if isinstance(e, Pow):
        words = {sympy.Integer(2): "squared", sympy.Integer(3): "cubed"}
        word = words.get(e.exp, "root" if e.exp == sympy.Rational(1, 2) else "power")
        return f"{plain}_{word}" if plain else word
    if isinstance(e, sympy.Function):
        word = type(e).__name__.lower()
        return f"{word}_{plain}" if plain and len(e.args) == 1 else word
    if isinstance(e, Mul):
        return "quotient" if Product.of(e).below else "product"
    return "total" if isinstance(e, Add) else "value"
