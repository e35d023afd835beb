"""Where sympy ends and torch begins: expressions evaluated, and what every printer of them shares.

:func:`evaluate` is the definition: recursive, slow and obvious; ``torch_statements`` writes the same as
three-address code. All multiply a product in the order of :class:`Product`, factors that may underflow first
and one power after another: ``e^(-x²) x²`` at ``x = 1e30`` is then ``0 · x · x = 0`` where ``0 · x²`` would
be ``0 · inf``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass

import sympy
import torch
from sympy import Add, Expr, Mul, Pow, Symbol

from ..errors import InternalError
from ..functions import erfc, expm1, log1p, select, sigmoid, softplus

UNARY: dict[type, str] = {
    sympy.exp: "exp",
    sympy.log: "log",
    sympy.sin: "sin",
    sympy.cos: "cos",
    sympy.tan: "tan",
    sympy.sinh: "sinh",
    sympy.cosh: "cosh",
    sympy.tanh: "tanh",
    sympy.asinh: "asinh",
    sympy.atan: "atan",
    sympy.erf: "erf",
    erfc: "erfc",
    sympy.Abs: "abs",
    sympy.sign: "sign",
    sigmoid: "sigmoid",
    log1p: "log1p",
    expm1: "expm1",
}
"""The torch function of each primitive; ``softplus`` and ``select`` are written out by each printer."""


def torch_name(e: Expr) -> str:
    """The torch function of the unary primitive ``e``."""
    if type(e) not in UNARY:
        raise InternalError(
            f"{type(e).__name__} reached the emitter; stable() rewrites or refuses it"
        )
    return UNARY[type(e)]


def to_float(value: Expr) -> float:
    """A constant expression, rounded once to float64."""
    return float(value.evalf(30))


# Products -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """``coefficient · Π above / Π below``, in the order of multiplication; powers are written out."""

    coefficient: float
    above: tuple[Expr, ...]
    below: tuple[Expr, ...]

    @classmethod
    def of(cls, expression: Expr) -> Product:
        numbers: list[Expr] = []
        above: list[Expr] = []
        below: list[Expr] = []
        for factor in Mul.make_args(expression):
            if factor.is_number:
                numbers.append(factor)
            elif isinstance(factor, Pow) and factor.exp.is_Integer:
                (above if factor.exp > 0 else below).extend([factor.base] * abs(int(factor.exp)))
            else:
                above.append(factor)
        above.sort(key=lambda factor: (not may_underflow(factor), isinstance(factor, Add)))
        return cls(to_float(Mul(*numbers)), tuple(above), tuple(below))


def may_underflow(e: Expr) -> bool:
    """Whether ``e`` is to be multiplied before factors that may overflow."""
    return e.has(sympy.Function)


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
            above = functools.reduce(operator.mul, map(value, product.above), product.coefficient)
            return above / functools.reduce(operator.mul, map(value, product.below), 1.0)
        if isinstance(e, Pow):
            return torch.pow(tensor(e.base), value(e.exp))
        if isinstance(e, select):
            c, u, v = map(tensor, e.args)
            return torch.where(c > 0, u, v)
        if isinstance(e, softplus):
            return torch.logaddexp(tensor(e.args[0]), tensor(sympy.Integer(0)))
        return getattr(torch, torch_name(e))(tensor(e.args[0]))

    return tensor(expression)
