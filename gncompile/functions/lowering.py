"""The lowering of expressions: where sympy ends and what is emitted begins.

    x*sigmoid(x) + 1  ->  0: sigmoid(x)
                          1: mul(x, value 0)
                          2: add(value 1, 1.0)

Each value is computed once. Operations are ``add sub mul div reciprocal neg sqrt pow`` and the primitives by
the names of their classes; the printers in ``emit/`` spell them. Products are multiplied in the order of
:class:`~gncompile.functions.expressions.Product`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypeAlias

import sympy
from sympy import Add, Expr, Mul, Pow, Symbol

from ..errors import InternalError
from .expressions import Product, may_underflow, power_of_root, to_float
from .primitives import logsumexp, select, spelling

Operand: TypeAlias = Symbol | int | float
"""An input, the number of the value, or a constant."""

HALF = sympy.Rational(1, 2)


@dataclass(frozen=True)
class Value:
    """``op(operands)``, which is ``meaning``."""

    op: str
    operands: tuple[Operand, ...]
    meaning: Expr


@dataclass
class Lowering:
    """Turns expressions in ``symbols`` into ``values``.

    ``fused`` says that the target adds a product in the pass that multiplies it: each term of a sum is then
    multiplied anew, and ``p (1 + r)`` is ``p + p r``, which takes one pass less.
    """

    symbols: Collection[Symbol]
    fused: bool = False
    values: list[Value] = field(default_factory=list)
    known: dict[Expr | tuple[Expr, ...], Operand] = field(default_factory=dict)

    def lower(self, e: Expr) -> Operand:
        """The operand that holds ``e``."""
        if e not in self.known:
            self.known[e] = to_float(e) if e.is_number else self.compute(e)
        return self.known[e]

    def compute(self, e: Expr) -> Operand:
        if isinstance(e, Symbol):
            if e not in self.symbols:
                raise InternalError(f"no variable was named for the symbol {e}")
            return e
        if isinstance(e, Add):
            return self.sum(e)
        if isinstance(e, Mul):
            return self.product(e)
        if isinstance(e, Pow):
            return self.power(e)
        if isinstance(e, select):
            return self.branch(e)
        if isinstance(e, logsumexp):
            return self.lower(e.folded(e.args))
        return self.value(spelling(e).function.__name__, *map(self.lower, e.args), meaning=e)

    def branch(self, e: select) -> Operand:
        """``select``, unless the target has something quicker."""
        return self.value("select", *map(self.lower, e.args), meaning=e)

    def value(self, op: str, *operands: Operand, meaning: Expr) -> int:
        """Append one value and return its number."""
        self.values.append(Value(op, operands, meaning))
        return len(self.values) - 1

    def scaled(self, coefficient: float, operand: Operand, meaning: Expr) -> Operand:
        if isinstance(operand, float):
            return coefficient * operand
        if coefficient == 1:
            return operand
        if coefficient == -1:
            return self.value("neg", operand, meaning=meaning)
        return self.value("mul", coefficient, operand, meaning=meaning)

    # Sums

    def sum(self, e: Add) -> Operand:
        """``k + Σ c_i t_i``, from a term with ``c = 1`` on; ``k`` last, or first where that is shorter."""
        number = Add(*(term for term in e.args if term.is_number))
        constant = to_float(number)
        terms = [coefficient(term) for term in e.args if not term.is_number]
        # Products come later: they are added in the pass that multiplies them.
        units = [i for i, (c, _) in enumerate(terms) if c == 1]
        start = min(units, key=lambda i: isinstance(terms[i][1], Mul), default=0)
        total: Operand = constant
        done = number
        if units or constant == 0 or not (self.fused or terms[0][0] < 0):
            c, core = terms.pop(start)
            done = c * core
            total = self.scaled(to_float(c), self.lower(core), done)
        for c, core in terms:
            done += c * core
            total = self.plus(total, to_float(c), core, done)
        if constant != 0 and not isinstance(total, float) and done != e:
            total = self.value("add", total, constant, meaning=e)
        return total

    def plus(self, total: Operand, c: float, core: Expr, meaning: Expr) -> Operand:
        """``total + c core``."""
        product = Product.of(core)
        plain = len(product.above) > 1 and not product.below and core not in self.known
        if self.fused and plain and not isinstance(total, float):
            first, last = self.multiplied(product.above[:-1]), self.lower(product.above[-1])
            term: Operand = self.value("mul", first, last, meaning=core)
        else:
            term = self.lower(core)
        sign = "sub" if c < 0 else "add"
        return self.value(sign, total, self.scaled(abs(c), term, core), meaning=meaning)

    # Products and powers

    def product(self, e: Expr) -> Operand:
        product = Product.of(e)
        c, above = product.coefficient, product.above
        if not above:
            below = self.powers(product.below)
            if c == 1:
                return self.value("reciprocal", below, meaning=e)
            return self.value("div", c, below, meaning=e)
        if product.below:
            return self.quotient(product, e)
        if len(set(above)) < len(above) and not any(map(may_underflow, above)):
            return self.scaled(c, self.powers(above), e)
        if abs(c) < 1 and len(above) > 1:
            # Scaled before the last factor, x erfc(u) / 2 does not overflow before it is halved.
            first = self.scaled(c, self.multiplied(above[:-1]), c * Mul(*above[:-1]))
            return self.value("mul", first, self.lower(above[-1]), meaning=e)
        return self.scaled(c, self.multiplied(above), e)

    def quotient(self, product: Product, e: Expr) -> Operand:
        """A product with divisors, multiplied and divided by turns."""
        early, late = product.scales
        first, *others = product.above
        rest = dataclasses.replace(product, above=(sympy.Integer(1), *others))
        done = first if early == 1 else early * first
        start = self.scaled(early, self.lower(first), done), done

        def times(total: tuple[Operand, Expr], factor: Expr) -> tuple[Operand, Expr]:
            if factor == 1:
                return total
            done = total[1] * factor
            return self.value("mul", total[0], self.lower(factor), meaning=done), done

        def over(total: tuple[Operand, Expr], divisor: Expr) -> tuple[Operand, Expr]:
            done = total[1] / divisor
            return self.value("div", total[0], self.lower(divisor), meaning=done), done

        return self.scaled(late, rest.folded(start, times, over)[0], e)

    def multiplied(self, factors: tuple[Expr, ...]) -> Operand:
        """``Π factors`` in the given order; products with the same beginning share it."""
        if len(factors) == 1:
            return self.lower(factors[0])
        if factors not in self.known:
            self.known[factors] = self.times(factors[:-1], factors[-1])
        return self.known[factors]

    def times(self, before: tuple[Expr, ...], last: Expr) -> Operand:
        """``p last``, where ``p = Π before``; ``p (1 + c r)`` may be ``p + c p r``."""
        whole = Mul(*before, last)
        if self.fused and isinstance(last, Add) and len(last.args) == 2 and last.args[0] == 1:
            c, r = coefficient(last.args[1])
            inner = Product.of(r)
            # Sums within r would be written out in turn, for each power of this one anew.
            if inner.above and not inner.below and not any(isinstance(f, Add) for f in inner.above):
                p = self.multiplied(before)
                first = self.multiplied((*before, *inner.above[:-1]))
                term = self.value("mul", first, self.lower(inner.above[-1]), meaning=whole)
                multiple = self.scaled(abs(to_float(c)), term, whole)
                return self.value("sub" if c < 0 else "add", p, multiple, meaning=whole)
        return self.value("mul", self.multiplied(before), self.lower(last), meaning=whole)

    def powers(self, factors: tuple[Expr, ...]) -> Operand:
        """``Π factors`` with repeated ones raised by squaring."""
        powers = [base ** factors.count(base) for base in dict.fromkeys(factors)]
        result: Operand = self.lower(powers[0])
        done = powers[0]
        for power in powers[1:]:
            done = done * power
            result = self.value("mul", result, self.lower(power), meaning=done)
        return result

    def power(self, e: Pow) -> Operand:
        """Squares for a whole exponent, a root for ``±1/2``, a ``pow`` for any other."""
        base, exponent = e.base, e.exp
        rooted = power_of_root(base, exponent)
        if rooted is not None:
            return self.lower(rooted)
        if not exponent.is_Integer and abs(exponent) != HALF:
            return self.value("pow", self.lower(base), self.lower(exponent), meaning=e)
        if exponent < 0:
            return self.value("reciprocal", self.lower(base**-exponent), meaning=e)
        if exponent == HALF:
            return self.value("sqrt", self.lower(base), meaning=e)
        half = self.lower(base ** (exponent // 2))
        square = self.value("mul", half, half, meaning=base ** (exponent // 2 * 2))
        if exponent % 2 == 0:
            return square
        return self.value("mul", square, self.lower(base), meaning=e)


def coefficient(term: Expr) -> tuple[Expr, Expr]:
    """``(c, t)`` with ``term = c t`` and ``c`` a number."""
    number = Mul(*(factor for factor in Mul.make_args(term) if factor.is_number))
    return number, term / number
