"""Expressions evaluated in torch, and the order in which a product is multiplied.

:func:`evaluate` is the definition: recursive, slow and obvious. What is emitted goes another way, through
:mod:`~gncompile.functions.lowering`. Both multiply a product in the order of :class:`Product`, factors that
may underflow first and one power after another: ``e^(-x²) x²`` at ``x = 1e30`` is then ``0 · x · x = 0``
where ``0 · x²`` would be ``0 · inf``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import sympy
import torch
from sympy import Add, Expr, Integer, Mul, Pow, Symbol, cosh

from ..errors import InternalError
from .primitives import hypot, logsumexp, select, softplus, spelling


def to_float(value: Expr) -> float:
    """A constant expression, rounded once to float64."""
    return float(value.evalf(30))


# Products -------------------------------------------------------------------------------------------------


T = TypeVar("T")


@dataclass(frozen=True)
class Product:
    """``coefficient · Π above / Π below``, in the order of multiplication; powers are written out.

    Factors that may underflow come before those that may overflow, and each divisor right after the factor
    of its number, see :meth:`folded`: ``x²/(1 + x²)`` is ``x/h · x/h`` with ``h = hypot(1, x)``.
    """

    coefficient: float
    above: tuple[Expr, ...]
    below: tuple[Expr, ...]

    @classmethod
    def of(cls, expression: Expr) -> Product:
        numbers: list[Expr] = []
        above: list[Expr] = []
        below: list[Expr] = []
        factors = Mul.make_args(expression)
        alone = sum(not factor.is_number for factor in factors) == 1
        for factor in factors:
            base, power = factor.as_base_exp() if isinstance(factor, Pow) else (factor, Integer(1))
            if factor.is_number:
                numbers.append(factor)
            elif isinstance(base, cosh) and power.is_Integer and power < 0 and not alone:
                # Its reciprocal underflows, long before a polynomial overflows.
                above.extend([1 / base] * -int(power))
            elif power.is_negative and (root := root_of_squares(base)) and not alone:
                # The sum of squares overflows where the quotient does not.
                below.extend(_repeated(root, -2 * power))
            elif power.is_Integer:
                (above if power > 0 else below).extend(_repeated(base, abs(power)))
            elif power.is_negative and not alone:
                below.append(base**-power)
            else:
                above.append(factor)
        above.sort(key=lambda factor: (not may_underflow(factor), isinstance(factor, Add)))
        return cls(to_float(Mul(*numbers)), tuple(above), tuple(below))

    @property
    def scales(self) -> tuple[float, float]:
        """What to multiply by first and last: a coefficient that shrinks goes first, any other last."""
        c = self.coefficient
        return (c, 1.0) if abs(c) < 1 else (1.0, c)

    def folded(self, start: T, times: Callable[[T, Expr], T], over: Callable[[T, Expr], T]) -> T:
        """Multiply and divide ``start`` in the order that overflows last."""
        result = start
        for factor, divisor in zip_longest(self.above, self.below):
            result = result if factor is None else times(result, factor)
            result = result if divisor is None else over(result, divisor)
        return result


def _repeated(base: Expr, power: Expr) -> list[Expr]:
    """Factors whose product is ``base^power`` for ``power > 0``: one power after another if it is whole."""
    return [base] * int(power) if power.is_Integer else [base**power]


def may_underflow(e: Expr) -> bool:
    """Whether ``e`` is to be multiplied before factors that may overflow."""
    return e.has(sympy.Function)


def power_of_root(base: Expr, exponent: Expr) -> Expr | None:
    """``(a² + b²)^q`` as ``hypot(a, b)^(2q)`` for a number ``q`` that is not whole, else None."""
    if exponent.is_Integer or not exponent.is_number:
        return None
    root = root_of_squares(base)
    return None if root is None else root ** (2 * exponent)


def root_of_squares(e: Expr) -> hypot | None:
    """``√e`` for ``e = a² + b²``: the sum of a positive number, or a square, and a square."""
    if not (isinstance(e, Add) and len(e.args) == 2):
        return None
    roots = [_root(term) for term in e.args]
    return None if None in roots else hypot(*roots)


def _root(term: Expr) -> Expr | None:
    """``√term`` where it is a positive number times a square."""
    number, rest = term.as_independent(*term.free_symbols, as_Add=False)
    base, power = rest.as_base_exp()
    square = rest == 1 or (power.is_Integer and power > 0 and power % 2 == 0)
    return sympy.sqrt(number) * base ** (power / 2) if number.is_positive and square else None


# The reference --------------------------------------------------------------------------------------------


def evaluate(expression: Expr, values: Mapping[Symbol, torch.Tensor]) -> torch.Tensor:
    """``expression`` at ``values``, broadcast as torch does; a constant gives a tensor of shape ``[]``.

    The dtype is that of ``values``; constants are Python floats.
    """
    known: dict[Expr, torch.Tensor | float] = dict(values)

    def value(e: Expr) -> torch.Tensor | float:
        if e not in known:
            known[e] = to_float(e) if e.is_number else compute(e)
        return known[e]

    def tensor(e: Expr) -> torch.Tensor:
        found = value(e)
        like = next(iter(values.values()), torch.empty(()))
        return found if isinstance(found, torch.Tensor) else like.new_tensor(found)

    def compute(e: Expr) -> torch.Tensor | float:
        if isinstance(e, Symbol):
            raise InternalError(f"no value was given for the symbol {e}")
        if isinstance(e, Add):
            return functools.reduce(operator.add, map(value, e.args))
        if isinstance(e, Mul) or (isinstance(e, Pow) and e.exp.is_Integer):
            product = Product.of(e)
            early, late = product.scales
            start: torch.Tensor | float = early
            result = product.folded(start, lambda r, f: r * value(f), lambda r, d: r / value(d))
            return result * late
        if isinstance(e, Pow) and (rooted := power_of_root(e.base, e.exp)) is not None:
            return value(rooted)
        if isinstance(e, Pow):
            return torch.pow(tensor(e.base), value(e.exp))
        if isinstance(e, select):
            c, u, v = map(tensor, e.args)
            return torch.where(c > 0, u, v)
        if isinstance(e, logsumexp):
            return value(e.folded(e.args))
        if isinstance(e, softplus):
            return torch.logaddexp(tensor(e.args[0]), tensor(Integer(0)))
        return getattr(torch, spelling(e).torch)(*map(tensor, e.args))

    return tensor(expression)
