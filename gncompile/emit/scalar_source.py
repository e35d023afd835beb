"""Numbers of a step as lines of Python: which values of a program are floats of the host, and their text.

A scalar on a CPU costs a tensor operation one to two microseconds and Python a twentieth of that. So what is
computed from scalars alone is written as arithmetic of floats, in float64 whatever the tensors hold::

    λ‖δ‖² − 0.01 l  ->  s.damping * inner - 0.01 * s.length

What tensors read too, what phases pass to each other and what outlives a step is kept in memory, as a *cell*:
a tensor of one element that is the attribute ``s.name`` for the host. Sums and products of floats are rounded
one by one, where torch fuses a multiplication with the addition after it, and its square root may be off by
one rounding: a step agrees with that of the tensors to a few roundings, not bit by bit.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache

import sympy
from sympy import Abs, Add, Expr, Mul, Pow, Symbol

from ..functions.expressions import Product, to_float
from ..functions.primitives import select
from ..program import operations as ir
from ..program.step_program import Instruction, StepProgram
from .literals import literal

SUMS = (ir.Dot, ir.Total, ir.Trace)
"""Operations of tensors whose result the host takes as a float."""


def is_float(i: Instruction) -> bool:
    """Whether the host computes an instruction's result as a float."""
    if i.spec.shape or not isinstance(i.op, (ir.Pointwise, *SUMS)):
        return False
    return not isinstance(i.op, ir.Pointwise) or _printable(i.op.expression)


def cells(program: StepProgram) -> frozenset[str]:
    """The scalars that stay in memory, although the host writes or reads them."""
    kept = set()
    for i in program:
        host = is_float(i)
        if host and (i.into is not None or i.name in program.results.values()):
            kept.add(i.name)
        for name in i.inputs:
            read = program[name]
            if read.spec.shape or not (host or is_float(read) or isinstance(i.op, ir.StepSizes)):
                continue
            takes_floats = host or isinstance(i.op, ir.StepSizes)
            if not (takes_floats and is_float(read) and read.phase == i.phase):
                kept.add(name)
    return frozenset(kept)


def floats(program: StepProgram) -> frozenset[str]:
    """The values that are floats of the host and nothing else: they need no memory."""
    kept = cells(program)
    return frozenset(i.name for i in program if is_float(i) and i.name not in kept)


@lru_cache(maxsize=1024)
def _printable(e: Expr) -> bool:
    if e.is_number or isinstance(e, Symbol):
        return True
    if isinstance(e, Pow) and not (e.exp.is_number and (2 * e.exp).is_Integer):
        return False
    return isinstance(e, Add | Mul | Pow | Abs | select) and all(map(_printable, e.args))


def scalar_lines(
    target: str, e: Expr, names: Mapping[Symbol, str], part: Callable[[int], str]
) -> list[str]:
    """``target = e`` as lines of Python; what ``e`` holds more than once comes first, named ``part(0)``, ….

    No operation in them raises, whatever its operands: sums and products are IEEE's as they stand, and what
    Python refuses (a division by zero, the root of a negative number) is a function of
    :mod:`gncompile.runtime.scalars`.
    """
    printer = _Printer(names)
    lines: list[str] = []
    for repeated in _repeated(e):
        printer.known[repeated] = part(len(lines))
        lines.append(f"{part(len(lines))} = {printer.written(repeated)}")
    return [*lines, f"{target} = {printer.text(e)}"]


@lru_cache(maxsize=1024)
def _repeated(e: Expr) -> tuple[Expr, ...]:
    """What is part of ``e`` more than once, and not merely a multiple of a value; the innermost first."""
    times: Counter[Expr] = Counter()
    order: dict[Expr, None] = {}

    def visit(x: Expr) -> None:
        times[x] += 1
        if times[x] == 1 and not (x.is_number or x.is_Symbol):
            for part in _parts(x):
                visit(part)
            order[x] = None

    visit(e)
    twice = (x for x in order if times[x] > 1)
    return tuple(x for x in twice if not (x.is_Mul and x.as_coeff_Mul()[1].is_Symbol))


def _parts(e: Expr) -> list[Expr]:
    """The expressions that the text of ``e`` is put together from."""
    if isinstance(e, select):
        c, u, v = e.args
        return [u, v] if _extreme(e) else [*_compared(c), u, v]
    if isinstance(e, Add):
        return [-term if _negative(term) else term for term in e.args]
    if isinstance(e, Mul):
        product = Product.of(e)
        return [*product.above, *product.below]
    return list(e.args)


def _compared(c: Expr) -> list[Expr]:
    if _truth(c):
        return _compared(c.args[0])
    return _parts(c) if isinstance(c, Add) else [c]


def _truth(c: Expr) -> bool:
    """Whether ``c`` is positive by a condition of its own, else 0."""
    return isinstance(c, select) and c.args[1].is_positive and c.args[2].is_nonpositive


def _extreme(e: select) -> str:
    """``maximum`` or ``minimum`` where ``e`` is that of two values."""
    c, u, v = e.args
    ratio = (u - v) / c
    return ("maximum" if ratio.is_positive else "minimum") if ratio.is_number else ""


class _Printer:
    def __init__(self, names: Mapping[Symbol, str]) -> None:
        self.known: dict[Expr, str] = dict(names)

    def text(self, e: Expr) -> str:
        if e.is_number:
            return literal(to_float(e))
        return self.known[e] if e in self.known else self.written(e)

    def written(self, e: Expr) -> str:
        if isinstance(e, Add):
            return self.sum(e)
        if isinstance(e, Mul):
            return self.product(Product.of(e))
        if isinstance(e, Pow):
            return self.power(e)
        if isinstance(e, select):
            return self.branch(e)
        return f"abs({self.text(e.args[0])})"

    def factor(self, e: Expr) -> str:
        """The text of ``e`` as an operand of a multiplication, a sum or a comparison."""
        text = self.text(e)
        return text if _atomic(text) else f"({text})"

    def term(self, e: Expr) -> str:
        return self.factor(e) if isinstance(e, Add | select) else self.text(e)

    def sum(self, e: Add) -> str:
        """``k + Σ c_i t_i``, terms with ``c = 1`` first."""
        numbers, terms = sympy.sift(e.args, lambda term: term.is_number, binary=True)
        signed = [(_negative(term), term) for term in terms]
        signed.sort(key=lambda term: (term[0], term[1].is_Mul))
        total = "".join(
            f" {'-' if minus else '+'} {self.term(-term if minus else term)}"
            for minus, term in signed
        )
        if not numbers:
            return total[3:] if total.startswith(" + ") else f"-{total[3:]}"
        constant = to_float(Add(*numbers))
        if not total.startswith(" + "):
            return literal(constant) + total
        return f"{total[3:]} {'-' if constant < 0 else '+'} {literal(abs(constant))}"

    def product(self, product: Product) -> str:
        if not product.above:
            return self.over(literal(product.coefficient), product.below)
        early, late = product.scales if product.below else (product.coefficient, 1.0)
        first = self.factor(product.above[0])
        start = {1.0: first, -1.0: f"-{first}"}.get(early, f"{literal(early)} * {first}")
        rest = dataclasses.replace(product, above=(sympy.Integer(1), *product.above[1:]))
        text = rest.folded(start, self.times, lambda text, divisor: self.over(text, (divisor,)))
        return text if late == 1 else f"{text} * {literal(late)}"

    def times(self, text: str, factor: Expr) -> str:
        return text if factor == 1 else f"{text} * {self.factor(factor)}"

    def over(self, text: str, below: tuple[Expr, ...]) -> str:
        for divisor in below:
            text = f"scalars.divide({text}, {self.text(divisor)})"
        return text

    def power(self, e: Pow) -> str:
        if e.exp.is_Integer:
            return self.product(Product.of(e))
        if e.exp < 0:
            return f"scalars.divide(1.0, {self.text(e.base**-e.exp)})"
        root = f"scalars.sqrt({self.text(e.base)})"
        return " * ".join([root] * int(2 * e.exp))

    def branch(self, e: select) -> str:
        """``u if c > 0 else v``, or the larger or smaller of the two."""
        c, u, v = e.args
        if which := _extreme(e):
            return f"scalars.{which}({self.text(u)}, {self.text(v)})"
        return f"{self.side(u)} if {self.condition(c)} else {self.text(v)}"

    def condition(self, c: Expr) -> str:
        """``c > 0``; ``x - 0.7 > 0`` is ``x > 0.7``, without a rounding."""
        if _truth(c):
            return self.condition(c.args[0])
        numbers, terms = sympy.sift(Add.make_args(c), lambda term: term.is_number, binary=True)
        below, above = sympy.sift(terms, _negative, binary=True)
        if not numbers and len(above) == len(below) == 1:
            return f"{self.side(above[0])} > {self.side(-below[0])}"
        level, varying = Add(*numbers), Add(*terms)
        if _negative(varying):
            return f"{self.side(-varying)} < {literal(to_float(level))}"
        return f"{self.side(varying)} > {literal(to_float(-level))}"

    def side(self, e: Expr) -> str:
        """The text of ``e`` beside a sign of comparison."""
        return self.factor(e) if isinstance(e, select) else self.text(e)


def _negative(e: Expr) -> bool:
    return bool(e.could_extract_minus_sign())


def _atomic(text: str) -> bool:
    """Whether a text has no operator outside brackets."""
    depth = 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and letter == " ":
            return False
    return True
