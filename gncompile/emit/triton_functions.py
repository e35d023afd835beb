"""Where sympy ends and Triton begins: expressions as ``@triton.jit`` device functions of tiles.

A kernel template takes such a function as a compile-time argument and applies it to whatever tiles it holds::

    triton_function("silu_and_slope", [x*sigmoid(x), sigmoid(x)*(1 + x*sigmoid(-x))], [x])

    @triton.jit
    def silu_and_slope(x):
        sigmoid_x = accurate.sigmoid(x)  # sigmoid(x)
        return x * sigmoid_x, sigmoid_x * (x * accurate.sigmoid(-x) + 1.0)

Values used twice get a name, all others are written in place. Products are multiplied in the order of
:class:`~gncompile.functions.expressions.Product`. A number stands only beside ``+ - * /``, where Triton
keeps it exact in float64; anywhere else it is a tile, because a bare number there becomes float32.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import sympy
from sympy import Add, Expr, Mul, Pow, Symbol

from ..base.names import LONGEST, RESERVED, identifier
from ..errors import InternalError, message
from ..functions.expressions import Product, hypot, root_of_squares, to_float
from ..functions.primitives import erfc, expm1, log1p, select, sigmoid, softplus
from .layout import filled
from .literals import comment, literal

FUNCTIONS: dict[type, str] = {
    sympy.exp: "accurate.exp",
    sympy.log: "tl.log",
    sympy.sin: "tl.sin",
    sympy.cos: "tl.cos",
    sympy.tan: "accurate.tan",
    sympy.sinh: "accurate.sinh",
    sympy.cosh: "accurate.cosh",
    sympy.tanh: "accurate.tanh",
    sympy.asinh: "accurate.asinh",
    sympy.atan: "accurate.atan",
    sympy.erf: "tl.erf",
    erfc: "accurate.erfc",
    sympy.Abs: "tl.abs",
    sympy.sign: "accurate.sign",
    sigmoid: "accurate.sigmoid",
    softplus: "accurate.softplus",
    log1p: "accurate.log1p",
    expm1: "accurate.expm1",
    select: "accurate.select",
    hypot: "accurate.hypot",
}
"""The device function of each primitive."""

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
        raise InternalError(message(f"two different device functions are called {doubled[0]!r}"))
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
    lowering = _Lowering(parameters, next(iter(parameters.values())))
    operands = [lowering.tile(lowering.lower(e)) for e in outputs]
    lines = _Text(lowering.instructions, operands, set(parameters.values())).lines()
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

Operand = str | int | float
"""A parameter, the number of the instruction that computes it, or a constant."""


@dataclass(frozen=True)
class Instruction:
    """``{0}``, ``{1}`` in ``text`` stand for operands, which must bind as tightly as ``needs`` says."""

    text: str
    operands: tuple[Operand, ...]
    needs: tuple[int, ...]
    binds: int
    meaning: Expr


@dataclass
class _Lowering:
    """Turns expressions into instructions, each value computed once."""

    names: dict[Symbol, str]
    like: str
    instructions: list[Instruction] = field(default_factory=list)
    known: dict[Expr | tuple[Expr, ...], Operand] = field(default_factory=dict)

    def lower(self, e: Expr) -> Operand:
        """The operand that holds ``e``."""
        if e not in self.known:
            self.known[e] = to_float(e) if e.is_number else self.compute(e)
        return self.known[e]

    def compute(self, e: Expr) -> Operand:
        if isinstance(e, Symbol):
            if e not in self.names:
                raise InternalError(f"no parameter was named for the symbol {e}")
            return self.names[e]
        if isinstance(e, Add):
            return self.sum(e)
        if isinstance(e, Mul):
            return self.product(e)
        if isinstance(e, Pow):
            return self.power(e.base, e.exp)
        if type(e) not in FUNCTIONS:
            raise InternalError(
                f"{type(e).__name__} reached the emitter; stable() rewrites or refuses it"
            )
        operands = [self.lower(arg) for arg in e.args]
        if isinstance(e, select) and all(isinstance(o, float) for o in operands[1:]):
            above, below = (literal(float(o)) for o in operands[1:])
            text = f"accurate.step({{0}}, {above}, {below})"
            return self.append(text, (SUM,), ATOM, operands[0], meaning=e)
        return self.call(FUNCTIONS[type(e)], *operands, meaning=e)

    # Instructions

    def append(
        self, text: str, needs: tuple[int, ...], binds: int, *operands: Operand, meaning: Expr
    ) -> int:
        self.instructions.append(Instruction(text, operands, needs, binds, meaning))
        return len(self.instructions) - 1

    def call(self, function: str, *operands: Operand, meaning: Expr) -> int:
        tiles = tuple(map(self.tile, operands))
        holes = ", ".join(f"{{{i}}}" for i in range(len(tiles)))
        return self.append(
            f"{function}({holes})", (SUM,) * len(tiles), ATOM, *tiles, meaning=meaning
        )

    def tile(self, operand: Operand) -> Operand:
        """``operand``, a constant as a tile."""
        if not isinstance(operand, float):
            return operand
        text = f"accurate.constant({self.like}, {literal(operand)})"
        return self.append(text, (), ATOM, meaning=sympy.Float(operand))

    def times(self, a: Operand, b: Operand, meaning: Expr) -> int:
        return self.append("{0} * {1}", (PRODUCT, SIGN), PRODUCT, a, b, meaning=meaning)

    def over(self, a: Operand, b: Operand, meaning: Expr) -> int:
        return self.append("{0} / {1}", (PRODUCT, SIGN), PRODUCT, a, b, meaning=meaning)

    def plus(self, a: Operand, b: Operand, sign: str, meaning: Expr) -> int:
        # Without parentheses only on the left: floating-point sums are not associative.
        return self.append(f"{{0}} {sign} {{1}}", (SUM, PRODUCT), SUM, a, b, meaning=meaning)

    def scaled(self, coefficient: float, operand: Operand, meaning: Expr) -> Operand:
        if isinstance(operand, float):
            return coefficient * operand
        if coefficient == 1:
            return operand
        if coefficient == -1:
            return self.append("-{0}", (SIGN,), SIGN, operand, meaning=meaning)
        return self.times(coefficient, operand, meaning)

    # Sums, products, powers

    def sum(self, e: Add) -> Operand:
        """Terms with a positive coefficient first, so that few signs are written; the constant last."""
        number = Add(*(term for term in e.args if term.is_number))
        terms = [_coefficient(term) for term in e.as_ordered_terms() if not term.is_number]
        terms.sort(key=lambda term: bool(term[0].is_negative))
        done: Expr = sympy.Integer(0)
        total: Operand | None = None
        if number.is_positive and terms[0][0].is_negative:
            total, done, number = to_float(number), number, done
        for c, core in terms:
            done += c * core
            operand = self.lower(core)
            if total is None:
                total = self.scaled(to_float(c), operand, c * core)
                continue
            sign = "-" if c.is_negative else "+"
            total = self.plus(total, self.scaled(abs(to_float(c)), operand, core), sign, done)
        assert total is not None
        constant = to_float(number)
        if constant != 0:
            total = self.plus(total, abs(constant), "-" if constant < 0 else "+", e)
        return total

    def product(self, e: Mul) -> Operand:
        product = Product.of(e)
        coefficient, above, below = product.coefficient, product.above, product.below
        if not above:
            return self.over(coefficient, self.multiplied(below), e)
        if below:
            return self.fraction(product, e)
        if abs(coefficient) < 1 and len(above) > 1:
            # Scaled before the last factor, x erfc(u) / 2 does not overflow before it is halved.
            head = Mul(*above[:-1])
            first = self.scaled(coefficient, self.multiplied(above[:-1]), coefficient * head)
            return self.times(first, self.lower(above[-1]), e)
        return self.scaled(coefficient, self.multiplied(above), e)

    def fraction(self, product: Product, e: Expr) -> Operand:
        """Factors and divisors in turns, see :class:`Product`; a small coefficient with the first factor."""
        first, *above = product.above
        early = abs(product.coefficient) < 1
        done = first * product.coefficient if early else first
        total = self.lower(first)
        total = self.scaled(product.coefficient, total, done) if early else total
        for divisor, factor in zip_longest(product.below, above):
            if divisor is not None:
                done = done / divisor
                total = self.over(total, self.lower(divisor), done)
            if factor is not None:
                done = done * factor
                total = self.times(total, self.lower(factor), done)
        return total if early else self.scaled(product.coefficient, total, e)

    def multiplied(self, factors: tuple[Expr, ...]) -> Operand:
        """``Π factors`` in the given order; products with the same beginning share it."""
        if len(set(factors)) == 1 and len(factors) > 1 and not factors[0].has(sympy.Function):
            return self.lower(factors[0] ** len(factors))
        if len(factors) == 1:
            return self.lower(factors[0])
        if factors not in self.known:
            last = self.lower(factors[-1])
            self.known[factors] = self.times(self.multiplied(factors[:-1]), last, Mul(*factors))
        return self.known[factors]

    def power(self, base: Expr, exponent: Expr) -> Operand:
        meaning = base**exponent
        if base.is_number:
            scaled = exponent * sympy.log(base)
            return self.call("accurate.exp", self.lower(scaled), meaning=meaning)
        root = root_of_squares(base)
        if root is not None and exponent.is_number:
            return self.lower(root ** (2 * exponent))
        if not (2 * exponent).is_Integer:
            return self.call("accurate.power", *map(self.lower, (base, exponent)), meaning=meaning)
        if exponent < 0:
            return self.over(1.0, self.lower(base**-exponent), meaning)
        if exponent == sympy.Rational(1, 2):
            return self.call("accurate.sqrt", self.lower(base), meaning=meaning)
        if not exponent.is_Integer:
            whole = self.lower(base ** (exponent - sympy.Rational(1, 2)))
            return self.times(whole, self.lower(sympy.sqrt(base)), meaning)
        half = self.lower(base ** (exponent // 2))
        square = self.times(half, half, base ** (exponent // 2 * 2))
        return square if exponent % 2 == 0 else self.times(square, self.lower(base), meaning)


def _coefficient(term: Expr) -> tuple[Expr, Expr]:
    number = Mul(*(factor for factor in Mul.make_args(term) if factor.is_number))
    return number, term / number


class _Text:
    """Instructions as statements: values used once are written in place."""

    def __init__(
        self, instructions: list[Instruction], results: list[Operand], taken: set[str]
    ) -> None:
        self.instructions = instructions
        self.results = results
        self.taken = taken | RESERVED
        read = [o for i in instructions for o in i.operands] + results
        self.uses = Counter(operand for operand in read if isinstance(operand, int))
        self.texts: dict[int, tuple[str, int]] = {}

    def lines(self) -> list[str]:
        """The body of the function."""
        statements = []
        for number, instruction in enumerate(self.instructions):
            text, binds = self.written(instruction), instruction.binds
            if self.uses[number] > 1 or (len(text) > INLINE and not self.is_result(number)):
                name = self.name(instruction.meaning)
                statements += self.statement(name, text, instruction)
                text, binds = name, ATOM
            self.texts[number] = text, binds
        return statements + self.returned()

    def is_result(self, number: int) -> bool:
        return any(result is number for result in self.results)

    def statement(self, name: str, text: str, instruction: Instruction) -> list[str]:
        """``name = text`` with its meaning, if there is room for it."""
        if len(line := f"{name} = {text}") <= WIDTH:
            return [_with_comment(line, instruction.meaning)]
        return self.broken(f"{name} = ", text, instruction, "")

    def broken(self, before: str, text: str, instruction: Instruction, after: str) -> list[str]:
        """``before text after``, broken between the operands of a call if that is too long."""
        line = before + text + after
        if len(line) <= WIDTH or len(instruction.operands) < 2 or instruction.binds != ATOM:
            return [line]
        function, _ = instruction.text.split("{0}")
        return filled(f"{before}{function}", self.operands(instruction), f"){after}", WIDTH)

    def operands(self, instruction: Instruction) -> list[str]:
        return [
            self.operand(operand, needs)
            for operand, needs in zip(instruction.operands, instruction.needs, strict=True)
        ]

    def written(self, instruction: Instruction) -> str:
        operands = self.operands(instruction)
        return instruction.text.format(*operands) if operands else instruction.text

    def operand(self, operand: Operand, needs: int) -> str:
        if isinstance(operand, str):
            return operand
        text, binds = (
            (literal(operand), SIGN if operand < 0 else ATOM)
            if isinstance(operand, float)
            else self.texts[operand]
        )
        return text if binds >= needs else f"({text})"

    def returned(self) -> list[str]:
        texts = [self.operand(result, SUM) for result in self.results]
        line = f"return {', '.join(texts)}" if len(texts) > 1 else f"return ({texts[0]},)"
        if len(line) <= WIDTH:
            return [line]
        found = ["return ("]
        for result, text in zip(self.results, texts, strict=True):
            if isinstance(result, int) and self.uses[result] == 1:  # written in place
                pieces = self.broken("", text, self.instructions[result], ",")
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
