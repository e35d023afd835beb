"""Expressions as ``out=`` statements into preallocated tensors.

    x*sigmoid(x)  ->  torch.sigmoid(x, out=y)
                      torch.mul(y, x, out=y)

:func:`torch_statements` lowers an expression with branches as torch does them quickly, fuses what torch does
in one pass, and gives each value a buffer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import sympy
import torch
from sympy import Add, Expr, Symbol

from ..functions.declarations import MAX_PARTS, tree_size
from ..functions.expressions import evaluate, to_float
from ..functions.lowering import Lowering, Operand, Value
from ..functions.primitives import declared, hypot, is_power_of_two, select
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
    result, values = _lowered(sympy.sympify(expression), frozenset(names))
    if isinstance(result, float):
        return [f"{out}.fill_({result!r})"]
    if isinstance(result, Symbol):
        return [f"{out}.copy_({names[result]})"]
    full = frozenset(names.values()) if full is None else full
    statements = _Statements(values, names, full)
    return _with_buffers(statements.written, out, scratch, out in names.values())


@lru_cache(maxsize=1024)  # the layers of a network have most of their expressions in common
def _lowered(expression: Expr, symbols: frozenset[Symbol]) -> tuple[Operand, tuple[Value, ...]]:
    """The operand that holds ``expression``, and the values it is made of."""
    lowering = _TorchLowering(symbols, fused=True)
    return lowering.lower(expression), tuple(lowering.values)


# Branches -------------------------------------------------------------------------------------------------


@dataclass
class _TorchLowering(Lowering):
    """Branches in operations of torch's, each named by its statement."""

    sizes: dict[Expr, int] = field(default_factory=dict)

    def compute(self, e: Expr) -> Operand:
        if isinstance(e, hypot):
            sides = [self.tensor(self.lower(side)) for side in e.args]
            return self.value("hypot", *sides, meaning=e)
        return super().compute(e)

    def tensor(self, operand: Operand) -> Operand:
        """A constant in a tensor of its own, for statements that take no numbers."""
        if not isinstance(operand, float):
            return operand
        text = f"{{out}}.fill_({literal(operand)})"
        return self.value(text, meaning=sympy.Float(operand))

    def branch(self, e: select) -> Operand:
        """By extremes, masks or one-sided arguments; ``torch.where`` is far slower on a CPU."""
        c, u, v = e.args
        ratio = _ratio(u - v, c)
        if ratio is not None:
            return self.extreme("max" if ratio.is_positive else "min", e)
        if u.is_number and v.is_number:
            return self.step(e)
        split = _one_sided(c, u, v)
        # Each split is written into the conditions within: nested, they would double time and again.
        if split is not None and tree_size(split, self.sizes) <= MAX_PARTS:
            return self.lower(split)
        compared, sign, bound = self.comparison(c)
        text = f"torch.where({{0}} {sign} {bound}, {{1}}, {{2}}, out={{out}})"
        operands = [self.tensor(o) for o in (compared, self.lower(u), self.lower(v))]
        return self.value(text, *operands, meaning=e)

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

    def extreme(self, which: str, e: select) -> Operand:
        """The larger or smaller of two."""
        _, u, v = e.args
        u, v = (v, u) if u.is_number else (u, v)
        if v.is_number:
            bound = "min" if which == "max" else "max"
            text = f"torch.clamp({{0}}, {bound}={literal(to_float(v))}, out={{out}})"
            return self.value(text, self.lower(u), meaning=e)
        text = f"torch.{which}imum({{0}}, {{1}}, out={{out}})"
        return self.value(text, self.lower(u), self.lower(v), meaning=e)

    def step(self, e: select) -> Operand:
        """One number where ``c > 0``, another elsewhere, from a mask of ones and zeros."""
        c, u, v = e.args[0], to_float(e.args[1]), to_float(e.args[2])
        compared, sign, bound = self.comparison(c)
        names = {">": ("gt", "le"), "<": ("lt", "ge")}[sign]

        def mask(holds: bool, value: float) -> Operand:
            name = names[0] if holds else names[1]
            text = f"torch.{name}({{0}}, {bound}, out={{out}})"
            return self.scaled(value, self.value(text, compared, meaning=e), e)

        if u == 0 or v == 0:
            return mask(v == 0, u or v)
        if u > 0 and v > 0:
            larger, smaller = max(u, v), min(u, v)
            text = f"torch.clamp({{0}}, min={literal(smaller)}, out={{out}})"
            return self.value(text, mask(u > v, larger), meaning=e)
        # Of the two products one is zero: no sum of u - v and v, which would lose a small u.
        return self.value("add", mask(True, u), mask(False, v), meaning=e)


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


# Statements -----------------------------------------------------------------------------------------------

ARITHMETIC = ("add", "sub", "mul", "div", "pow", "neg", "sqrt", "reciprocal")
"""Operations that torch has by the same name; of their operands one may be a number."""


@dataclass(frozen=True)
class Statement:
    """``{0}``, ``{1}``, … in ``text`` stand for names, values or numbers; ``{out}`` for the value."""

    value: int
    text: str
    operands: tuple[str | int | float, ...]


class _Statements:
    """One statement a value, but for what is only there to be added or inverted::

    t + c a -> torch.add(t, a, alpha=c)    t + c a b -> torch.addcmul(t, a, b, value=c)
    1 / √a  -> torch.rsqrt(a)
    """

    def __init__(
        self, values: Sequence[Value], names: Mapping[Symbol, str], full: frozenset[str]
    ) -> None:
        self.values, self.names, self.full = values, names, full
        self.readers = Counter(o for v in values for o in v.operands if isinstance(o, int))
        self.written: list[Statement] = []
        needed: dict[int, tuple[str, tuple[Operand, ...]]] = {}
        read = {len(values) - 1}
        for number in reversed(range(len(values))):
            if number in read:
                needed[number] = self.fused(values[number])
                read.update(o for o in needed[number][1] if isinstance(o, int))
        for number in sorted(needed):
            self.write(number, *needed[number])

    def write(self, number: int, text: str, given: tuple[Operand, ...]) -> None:
        """Append a statement; where all operands are broadcast, after one that copies the first."""
        operands = [self.names[o] if isinstance(o, Symbol) else o for o in given]
        tensors = [o for o in operands if not isinstance(o, float)]
        if tensors and not any(isinstance(o, int) or o in self.full for o in tensors):
            # Broadcast operands only: torch would shrink the result to their shape.
            copied = len(self.values) + len(self.written)
            self.written.append(Statement(copied, "{out}.copy_({0})", (tensors[0],)))
            operands = [copied if o == tensors[0] else o for o in operands]
        self.written.append(Statement(number, text, tuple(operands)))

    def fused(self, value: Value) -> tuple[str, tuple[Operand, ...]]:
        """The text of a value's statement, and its operands."""
        op, operands = value.op, value.operands
        if op in ("add", "sub"):
            scale, term = (1.0 if op == "add" else -1.0), operands[-1]
            multiple = self.alone(term, "mul")
            if multiple and _is_multiple(multiple):
                factor, term = multiple.operands
                assert isinstance(factor, float)
                scale *= factor
            product = self.alone(term, "mul")
            if product and not _is_multiple(product) and not isinstance(operands[0], float):
                factor = "" if scale == 1 else f"value={literal(scale)}, "
                text = f"torch.addcmul({{0}}, {{1}}, {{2}}, {factor}out={{out}})"
                return text, (operands[0], *product.operands)
            if term != operands[-1]:
                text = f"torch.add({{0}}, {{1}}, alpha={literal(scale)}, out={{out}})"
                return text, (operands[0], term)
        if op == "reciprocal" and (root := self.alone(operands[0], "sqrt")):
            return "torch.rsqrt({0}, out={out})", root.operands
        if "{" in op:
            return op, operands
        if _is_multiple(value):
            operands = operands[::-1]
        known = None if op in ARITHMETIC else declared(value.meaning)
        if known and known.statement:
            return known.statement, operands
        holes = ", ".join(f"{{{i}}}" for i in range(len(operands)))
        return f"torch.{known.torch if known else op}({holes}, out={{out}})", operands

    def alone(self, operand: Operand, op: str) -> Value | None:
        """The ``op`` that makes an operand, if nothing else reads it."""
        if not isinstance(operand, int) or self.readers[operand] > 1:
            return None
        value = self.values[operand]
        return value if value.op == op else None


def _is_multiple(value: Value) -> bool:
    """Whether a value is a number times another."""
    return value.op == "mul" and isinstance(value.operands[0], float)


def _with_buffers(
    statements: list[Statement], out: str, scratch: Callable[[int], str], out_is_input: bool
) -> list[str]:
    """Give each value a buffer, reused after its last reader; the last value lands in ``out``."""
    last_reader = {
        operand: position
        for position, statement in enumerate(statements)
        for operand in statement.operands
        if isinstance(operand, int)
    }
    free = [] if out_is_input else [out]
    buffers: dict[int, str] = {}
    count = 0
    lines = []
    for position, statement in enumerate(statements):
        texts = [
            buffers[o] if isinstance(o, int) else o if isinstance(o, str) else literal(o)
            for o in statement.operands
        ]
        read = dict.fromkeys(o for o in statement.operands if isinstance(o, int))
        free.extend(buffers[operand] for operand in read if last_reader[operand] == position)
        if position == len(statements) - 1:
            target = out
        elif free:
            target = free.pop()
        else:
            target, count = scratch(count), count + 1
        buffers[statement.value] = target
        lines.append(statement.text.format(*texts, out=target))
    return lines
