"""Expressions as ``out=`` statements: three-address code into preallocated tensors.

    x*sigmoid(x)  ->  torch.sigmoid(x, out=y)
                      torch.mul(y, x, out=y)

:func:`torch_statements` lowers an expression to instructions, each value once, then gives each a buffer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sympy
import torch
from sympy import Add, Expr, Mul, Pow, Symbol

from ..errors import InternalError
from ..functions.declarations import MAX_PARTS, tree_size
from ..functions.expressions import (
    Product,
    evaluate,
    hypot,
    may_underflow,
    power_of_root,
    to_float,
    torch_name,
)
from ..functions.primitives import select, softplus
from ..functions.stable_forms import is_power_of_two
from .literals import literal


def torch_statements(
    expression: Expr,
    names: Mapping[Symbol, str],
    out: str,
    scratch: Callable[[int], str],
    full: frozenset[str] | None = None,
) -> list[str]:
    """Statements that write ``expression`` into the tensor named ``out``, which has the result's shape.

    ``names`` gives the variable of each symbol; inputs are never written. ``scratch(i)`` names the i-th
    intermediate tensor, of ``out``'s shape and dtype; they are numbered without gaps, and ``scratch`` is
    called for each that is needed. ``full`` names the variables that have ``out``'s shape (default: all);
    the others are broadcast. Equal subexpressions are computed once.

    ``out`` serves as an intermediate too, unless it is also an input; writing an expression of ``y`` into
    ``y`` itself is therefore allowed.
    """
    lowering = _Lowering(names, frozenset(names.values()) if full is None else full)
    result = lowering.lower(sympy.sympify(expression))
    if isinstance(result, float):
        return [f"{out}.fill_({result!r})"]
    if isinstance(result, str):
        return [f"{out}.copy_({result})"]
    return _with_buffers(lowering.instructions, out, scratch, out in names.values())


Operand = str | int | float
"""An input's variable name, the number of the instruction that computes it, or a constant."""


@dataclass(frozen=True)
class Instruction:
    """One elementwise statement; ``{0}``, ``{1}``, … stand for operands, ``{out}`` for the result."""

    text: str
    operands: tuple[Operand, ...]


@dataclass
class _Lowering:
    """Turns expressions into instructions, each value computed once."""

    names: Mapping[Symbol, str]
    full: frozenset[str]
    instructions: list[Instruction] = field(default_factory=list)
    known: dict[Expr | tuple[Expr, ...], Operand] = field(default_factory=dict)
    sizes: dict[Expr, int] = field(default_factory=dict)

    def lower(self, e: Expr) -> Operand:
        """The operand that holds ``e``."""
        if e not in self.known:
            self.known[e] = self.compute(e)
        return self.known[e]

    def compute(self, e: Expr) -> Operand:
        if e.is_number:
            return to_float(e)
        if isinstance(e, Symbol):
            if e not in self.names:
                raise InternalError(f"no variable was named for the symbol {e}")
            return self.names[e]
        if isinstance(e, Add):
            return self.sum(e)
        if isinstance(e, Mul):
            return self.product(e)
        if isinstance(e, Pow):
            return self.power(e.base, e.exp)
        if isinstance(e, select):
            return self.branch(e)
        if isinstance(e, hypot):
            sides = [self.tensor(self.lower(side)) for side in e.args]
            return self.emit("torch.hypot({0}, {1}, out={out})", *sides)
        operand = self.lower(e.args[0])
        if isinstance(e, softplus):
            # Beyond 40, log(1 + e^x) and x agree to less than one float64 rounding.
            return self.emit("torch.ops.aten.softplus.out({0}, 1, 40, out={out})", operand)
        return self.emit(f"torch.{torch_name(e)}({{0}}, out={{out}})", operand)

    def emit(self, text: str, *operands: Operand) -> int:
        """Append one instruction and return its number."""
        tensors = [operand for operand in operands if not isinstance(operand, float)]
        if not any(isinstance(operand, int) or operand in self.full for operand in tensors):
            # Broadcast operands only: torch would shrink the result to their shape.
            copied = self.append("{out}.copy_({0})", tensors[0])
            operands = tuple(copied if operand == tensors[0] else operand for operand in operands)
        return self.append(text, *operands)

    def append(self, text: str, *operands: Operand) -> int:
        self.instructions.append(Instruction(text, operands))
        return len(self.instructions) - 1

    def tensor(self, operand: Operand) -> Operand:
        """A constant in a tensor of its own, for statements that take no numbers."""
        return (
            self.append(f"{{out}}.fill_({literal(operand)})")
            if isinstance(operand, float)
            else operand
        )

    def scaled(self, operand: Operand, coefficient: float) -> Operand:
        if coefficient == 1 or isinstance(operand, float):
            return operand * coefficient if isinstance(operand, float) else operand
        if coefficient == -1:
            return self.emit("torch.neg({0}, out={out})", operand)
        return self.emit("torch.mul({0}, {1}, out={out})", operand, coefficient)

    # Sums

    def sum(self, e: Add) -> Operand:
        """``k + Σ c_i t_i``: start at a term with ``c = 1``, else at ``k``; then one pass a term."""
        constant = to_float(Add(*(term for term in e.args if term.is_number)))
        terms = [_coefficient(term) for term in e.args if not term.is_number]
        # Products come later: they are added in the pass that multiplies them.
        units = [i for i, (c, _) in enumerate(terms) if c == 1]
        start = min(units, key=lambda i: isinstance(terms[i][1], Mul), default=None)
        if start is None and constant == 0:
            start = 0
        total: Operand = constant
        if start is not None:
            c, core = terms.pop(start)
            total = self.scaled(self.lower(core), c)
        for c, core in terms:
            total = self.plus(total, c, core)
        if start is not None and constant != 0:
            total = self.emit("torch.add({0}, {1}, out={out})", total, constant)
        return total

    def plus(self, total: Operand, c: float, term: Expr) -> Operand:
        """``total + c term`` in one pass."""
        product = Product.of(term)
        plain = len(product.above) > 1 and not product.below and term not in self.known
        if plain and not isinstance(total, float):
            first, last = self.multiplied(product.above[:-1]), self.lower(product.above[-1])
            return self.addcmul(total, first, last, c)
        operand = self.lower(term)
        if c == 1:
            return self.emit("torch.add({0}, {1}, out={out})", total, operand)
        if c == -1:
            return self.emit("torch.sub({0}, {1}, out={out})", total, operand)
        return self.emit(
            f"torch.add({{0}}, {{1}}, alpha={literal(c)}, out={{out}})", total, operand
        )

    def addcmul(self, total: Operand, a: Operand, b: Operand, c: float) -> Operand:
        value = "" if c == 1 else f"value={literal(c)}, "
        return self.emit(f"torch.addcmul({{0}}, {{1}}, {{2}}, {value}out={{out}})", total, a, b)

    # Products

    def product(self, e: Mul) -> Operand:
        product = Product.of(e)
        if not product.above:
            text = "torch.div({0}, {1}, out={out})"
            return self.emit(text, product.coefficient, self.powers(product.below))
        coefficient = product.coefficient
        if product.below:
            return self.quotient(product)
        if len(set(product.above)) < len(product.above) and not any(
            map(may_underflow, product.above)
        ):
            result = self.powers(product.above)
        elif abs(coefficient) < 1 and len(product.above) > 1:
            # Scaled before the last factor, x erfc(u) / 2 does not overflow before it is halved.
            first = self.scaled(self.multiplied(product.above[:-1]), coefficient)
            last = self.lower(product.above[-1])
            result, coefficient = self.emit("torch.mul({0}, {1}, out={out})", first, last), 1.0
        else:
            result = self.multiplied(product.above)
        return self.scaled(result, coefficient)

    def quotient(self, product: Product) -> Operand:
        """A product with divisors, multiplied and divided by turns."""
        early, late = product.scales
        first, *others = product.above
        start = self.scaled(self.lower(first), early)
        rest = dataclasses.replace(product, above=(sympy.Integer(1), *others))
        result = rest.folded(start, self.multiply, self.divide)
        return self.scaled(result, late)

    def multiply(self, result: Operand, factor: Expr) -> Operand:
        if factor == 1:
            return result
        return self.emit("torch.mul({0}, {1}, out={out})", result, self.lower(factor))

    def divide(self, result: Operand, divisor: Expr) -> Operand:
        return self.emit("torch.div({0}, {1}, out={out})", result, self.lower(divisor))

    def multiplied(self, factors: tuple[Expr, ...]) -> Operand:
        """``Π factors`` in the given order; products with the same beginning share it."""
        if len(factors) == 1:
            return self.lower(factors[0])
        if factors not in self.known:
            self.known[factors] = self.times(factors[:-1], factors[-1])
        return self.known[factors]

    def times(self, before: tuple[Expr, ...], last: Expr) -> Operand:
        """``p last``; ``p (1 + c r)`` is ``p + c p r``, which takes one pass less."""
        if isinstance(last, Add) and len(last.args) == 2 and last.args[0] == 1:
            c, r = _coefficient(last.args[1])
            inner = Product.of(r)
            # Sums within r would be written out in turn, for each power of this one anew.
            if inner.above and not inner.below and not any(isinstance(f, Add) for f in inner.above):
                p = self.multiplied(before)
                first = self.multiplied((*before, *inner.above[:-1]))
                return self.addcmul(p, first, self.lower(inner.above[-1]), c)
        first = self.multiplied(before)
        return self.emit("torch.mul({0}, {1}, out={out})", first, self.lower(last))

    def powers(self, factors: tuple[Expr, ...]) -> Operand:
        """``Π factors`` with repeated ones raised by squaring."""
        bases = list(dict.fromkeys(factors))
        operands = [self.lower(base ** factors.count(base)) for base in bases]
        return functools.reduce(
            lambda a, b: self.emit("torch.mul({0}, {1}, out={out})", a, b), operands
        )

    def power(self, base: Expr, exponent: Expr) -> Operand:
        rooted = power_of_root(base, exponent)
        if rooted is not None:
            return self.lower(rooted)
        if exponent == sympy.Rational(1, 2):
            return self.emit("torch.sqrt({0}, out={out})", self.lower(base))
        if exponent == sympy.Rational(-1, 2):
            return self.emit("torch.rsqrt({0}, out={out})", self.lower(base))
        if not exponent.is_Integer:
            text = "torch.pow({0}, {1}, out={out})"
            return self.emit(text, self.lower(base), self.lower(exponent))
        if exponent < 0:
            return self.emit("torch.reciprocal({0}, out={out})", self.lower(base**-exponent))
        half = self.lower(base ** (exponent // 2))
        square = self.emit("torch.mul({0}, {0}, out={out})", half)
        if exponent % 2 == 0:
            return square
        return self.emit("torch.mul({0}, {1}, out={out})", square, self.lower(base))

    # Branches

    def branch(self, e: select) -> Operand:
        """``select`` by extremes, masks or one-sided arguments; ``torch.where`` is far slower on a CPU."""
        c, u, v = e.args
        ratio = _ratio(u - v, c)
        if ratio is not None:
            return self.extreme("max" if ratio.is_positive else "min", u, v)
        if u.is_number and v.is_number:
            return self.step(c, to_float(u), to_float(v))
        split = _one_sided(c, u, v)
        # Each split is written into the conditions within: nested, they would double time and again.
        if split is not None and tree_size(split, self.sizes) <= MAX_PARTS:
            return self.lower(split)
        compared, sign, bound = self.comparison(c)
        operands = [self.tensor(part) for part in (compared, self.lower(u), self.lower(v))]
        return self.emit(f"torch.where({{0}} {sign} {bound}, {{1}}, {{2}}, out={{out}})", *operands)

    def comparison(self, c: Expr) -> tuple[Operand, str, str]:
        """``c > 0`` as operand, sign and bound: ``x - 0.7 > 0`` is ``x > 0.7``, without a rounding."""
        numbers, terms = sympy.sift(Add.make_args(c), lambda term: term.is_number, binary=True)
        if not numbers or c in self.known:
            return self.lower(c), ">", "0"
        level, varying = Add(*numbers), Add(*terms)
        factor, _ = varying.as_coeff_Mul()
        # A power of two may be divided out without a rounding; any other factor stays where it is.
        scale = abs(factor) if is_power_of_two(factor) else sympy.Integer(1)
        if factor.is_negative:
            return self.lower(-varying / scale), "<", literal(to_float(level / scale))
        return self.lower(varying / scale), ">", literal(to_float(-level / scale))

    def extreme(self, which: str, u: Expr, v: Expr) -> Operand:
        """The larger or smaller of two."""
        u, v = (v, u) if u.is_number else (u, v)
        if v.is_number:
            bound = "min" if which == "max" else "max"
            text = f"torch.clamp({{0}}, {bound}={literal(to_float(v))}, out={{out}})"
            return self.emit(text, self.lower(u))
        text = f"torch.{which}imum({{0}}, {{1}}, out={{out}})"
        return self.emit(text, self.lower(u), self.lower(v))

    def step(self, c: Expr, u: float, v: float) -> Operand:
        """``u`` where ``c > 0``, else ``v``, from a mask of ones and zeros."""
        compared, sign, bound = self.comparison(c)
        names = {">": ("gt", "le"), "<": ("lt", "ge")}[sign]

        def mask(holds: bool, value: float) -> Operand:
            name = names[0] if holds else names[1]
            found = self.emit(f"torch.{name}({{0}}, {bound}, out={{out}})", compared)
            return self.scaled(found, value)

        if u == 0 or v == 0:
            return mask(v == 0, u or v)
        if u > 0 and v > 0:
            larger, smaller = max(u, v), min(u, v)
            text = f"torch.clamp({{0}}, min={literal(smaller)}, out={{out}})"
            return self.emit(text, mask(u > v, larger))
        # Of the two products one is zero: no sum of u - v and v, which would lose a small u.
        text = "torch.add({0}, {1}, out={out})"
        return self.emit(text, mask(True, u), mask(False, v))


def _coefficient(term: Expr) -> tuple[float, Expr]:
    numbers = [factor for factor in Mul.make_args(term) if factor.is_number]
    return to_float(Mul(*numbers)), term / Mul(*numbers)


def _ratio(a: Expr, b: Expr) -> Expr | None:
    """The number ``a / b``, or None if it is none."""
    (scale_a, part_a), (scale_b, part_b) = a.as_content_primitive(), b.as_content_primitive()
    ratio = scale_a / scale_b * (-1 if part_a == -part_b else part_a / part_b)
    return ratio if ratio.is_number else None


def _one_sided(c: Expr, u: Expr, v: Expr) -> Expr | None:
    """``select(c, u(c), v(c))`` as ``u(max(c, 0)) + v(min(c, 0))`` plus a step that mends the jump at 0.

    Each branch is then only evaluated where it is meant, and is constant elsewhere. Left alone if the sum
    would cancel or leave a rounding, or if a branch depends on more than ``c``.
    """
    s = Symbol("side", real=True)
    u, v = u.xreplace({c: s}), v.xreplace({c: s})
    if not (u.free_symbols | v.free_symbols) <= {s}:
        return None
    u0, v0 = u.subs(s, 0), v.subs(s, 0)
    if not (u0.is_finite and v0.is_finite):
        return None
    above, below = u.xreplace({s: select(c, c, 0)}), v.xreplace({s: select(-c, c, 0)})
    if u0 == 0 and v0 == 0 and _comes_out(u, s, u0) and _comes_out(v, s, v0):
        return above + below
    if u.is_number and _comes_out(v + (u0 - v0), s, u0):
        return below + (u0 - v0) * select(c, 1, 0)
    if v.is_number and _comes_out(u + (v0 - u0), s, v0):
        return above + (v0 - u0) * select(c, 0, 1)
    return None


def _comes_out(e: Expr, s: Symbol, value: Expr) -> bool:
    """Whether ``e`` is ``value`` at ``s = 0``, in floating point too, term by term."""
    for dtype in (torch.float32, torch.float64):
        zero = torch.zeros((), dtype=dtype)
        total = sum((evaluate(term, {s: zero}) for term in Add.make_args(e)), start=zero)
        if total != zero.new_tensor(to_float(value)):
            return False
    return True


def _with_buffers(
    instructions: list[Instruction], out: str, scratch: Callable[[int], str], out_is_input: bool
) -> list[str]:
    """Give each value a buffer, reused after its last reader; the last value lands in ``out``."""
    last_reader = {
        operand: position
        for position, instruction in enumerate(instructions)
        for operand in instruction.operands
        if isinstance(operand, int)
    }
    free = [] if out_is_input else [out]
    buffers: dict[int, str] = {}
    count = 0
    lines = []
    for position, instruction in enumerate(instructions):
        texts = [
            buffers[operand] if isinstance(operand, int) else _text(operand)
            for operand in instruction.operands
        ]
        read = dict.fromkeys(o for o in instruction.operands if isinstance(o, int))
        free.extend(buffers[operand] for operand in read if last_reader[operand] == position)
        if position == len(instructions) - 1:
            target = out
        elif free:
            target = free.pop()
        else:
            target, count = scratch(count), count + 1
        buffers[position] = target
        lines.append(instruction.text.format(*texts, out=target))
    return lines


def _text(operand: str | float) -> str:
    return operand if isinstance(operand, str) else literal(operand)
