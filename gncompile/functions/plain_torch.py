"""Expressions in torch as they stand, for ``autograd`` and ``torch.func``: a reference for compiled code.

Nothing is shared with what compiles: no stable form, no derived slope, no order of multiplication. Each node
of an expression is the torch function of its name; slopes are torch's own, at kinks too.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping

import sympy
import torch
from sympy import Expr, Symbol
from torch import Tensor
from torch.nn import functional

from ..errors import InternalError
from .primitives import Primitive, erfc, expm1, log1p, logsumexp, select, sigmoid, softplus

FUNCTIONS: Mapping[type[Expr], Callable[[Tensor], Tensor]] = {
    sympy.exp: torch.exp,
    sympy.log: torch.log,
    sympy.sin: torch.sin,
    sympy.cos: torch.cos,
    sympy.tan: torch.tan,
    sympy.sinh: torch.sinh,
    sympy.cosh: torch.cosh,
    sympy.tanh: torch.tanh,
    sympy.asinh: torch.asinh,
    sympy.atan: torch.atan,
    sympy.erf: torch.erf,
    sympy.erfc: torch.erfc,
    erfc: torch.erfc,
    sympy.Abs: torch.abs,
    sympy.sign: torch.sign,
    sigmoid: torch.sigmoid,
    # Beyond 40, log(1 + e^x) and x agree to less than one float64 rounding.
    softplus: lambda x: functional.softplus(x, threshold=40),
    log1p: torch.log1p,
    expm1: torch.expm1,
}


def plain(expression: Expr, values: Mapping[Symbol, Tensor]) -> Tensor:
    """``expression`` at ``values``, broadcast; a constant has the first value's dtype and shape ``[]``.

    Where the expression is a ``select``, both branches are computed, as by ``torch.where``.
    """
    like = next(iter(values.values()), torch.empty(()))
    known: dict[Expr, Tensor | float] = dict(values)

    def value(e: Expr) -> Tensor | float:
        if e not in known:
            known[e] = float(e.evalf(30)) if e.is_number else computed(e)
        return known[e]

    def tensor(e: Expr) -> Tensor:
        found = value(e)
        return found if isinstance(found, Tensor) else like.new_tensor(found)

    def computed(e: Expr) -> Tensor | float:
        if isinstance(e, sympy.Add):
            return functools.reduce(operator.add, map(value, e.args))
        if isinstance(e, sympy.Mul):
            return functools.reduce(operator.mul, map(value, e.args))
        if isinstance(e, sympy.Pow):
            if e.exp.is_number:
                return torch.pow(tensor(e.base), int(e.exp) if e.exp.is_Integer else float(e.exp))
            return torch.pow(tensor(e.base), tensor(e.exp))
        if isinstance(e, select):
            condition, above, below = map(tensor, e.args)
            return torch.where(condition > 0, above, below)
        if isinstance(e, sympy.Max | sympy.Min):
            extreme = torch.maximum if isinstance(e, sympy.Max) else torch.minimum
            return functools.reduce(extreme, map(tensor, e.args))
        if isinstance(e, logsumexp):
            return torch.stack(torch.broadcast_tensors(*map(tensor, e.args))).logsumexp(dim=0)
        if isinstance(e, Primitive) and type(e) not in FUNCTIONS:
            return value(e.definition())
        if type(e) not in FUNCTIONS:
            raise InternalError(f"{type(e).__name__} of {e} has no function in torch")
        return FUNCTIONS[type(e)](tensor(e.args[0]))

    return tensor(expression)
