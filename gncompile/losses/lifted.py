"""A Python function of output and target, written for tensors, as a loss: called with symbols once.

What comes back is compared with the function itself on tensors: a branch that looked at values, or state,
would have been seen by one of the two only.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import sympy
import torch
from sympy import Expr
from torch.nn import functional

from ..errors import LossError
from ..functions.parsing import FUNCTIONS
from ..functions.plain_torch import plain
from ..functions.primitives import maximum, minimum, number, select
from .loss_forms import stable_loss
from .loss_scale import Over, Scale
from .loss_types import Loss
from .separable import OUTPUT, TARGET, SeparableLoss

SUPPORTED = (
    "arithmetic, comparisons in torch.where, functions such as torch.exp and F.softplus of one argument, "
    "F.mse_loss and the like, and at last one .mean() or .sum() over everything"
)
NAMES = {"absolute": "abs", "clip": "clamp"}
"""Other names that torch has for a function."""
AGREE = 1e-9
"""Relative, of float64 rounding in a sum of a few terms; a wrong expression is off by percents."""


class _Unknown(Exception):
    """What a function does that has no counterpart."""


@dataclass(frozen=True)
class _Total:
    """``factor`` times the mean over elements, or the sum, of an expression."""

    expression: Expr
    over: Over

    def __add__(self, other: Any) -> _Total:
        if not isinstance(other, _Total) or other.over != self.over:
            raise _Unknown("adds something else to a mean or sum over all elements")
        return _Total(self.expression + other.expression, self.over)

    def __mul__(self, other: Any) -> _Total:
        if not isinstance(other, int | float):
            raise _Unknown("multiplies a mean or sum over all elements by no number")
        return _Total(self.expression * number(other), self.over)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> _Total:
        return self * (1 / other) if isinstance(other, int | float) else self * other

    def __neg__(self) -> _Total:
        return self * -1

    def __sub__(self, other: Any) -> _Total:
        return self + -other

    def __getattr__(self, name: str) -> NoReturn:
        raise _Unknown(f"uses {name} of a mean or sum over all elements")


def _expression(value: Any) -> Expr:
    if isinstance(value, _Elements):
        return value.expression
    if isinstance(value, int | float):
        return number(value)
    raise _Unknown(f"combines elements with a {type(value).__name__.removeprefix('_')}")


def _binary(make: Callable[[Expr, Expr], Expr]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forwards(self: _Elements, other: Any) -> _Elements:
        return _Elements(make(self.expression, _expression(other)))

    def backwards(self: _Elements, other: Any) -> _Elements:
        return _Elements(make(_expression(other), self.expression))

    return forwards, backwards


class _Elements:
    """Stands for a tensor of one expression at every output."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expression: Expr) -> None:
        self.expression = expression

    __add__, __radd__ = _binary(lambda a, b: a + b)
    __sub__, __rsub__ = _binary(lambda a, b: a - b)
    __mul__, __rmul__ = _binary(lambda a, b: a * b)
    __truediv__, __rtruediv__ = _binary(lambda a, b: a / b)
    __pow__, __rpow__ = _binary(lambda a, b: a**b)
    __gt__, __lt__ = _binary(lambda a, b: a - b)
    __ge__, __le__ = _binary(lambda a, b: a - b)

    def __neg__(self) -> _Elements:
        return _Elements(-self.expression)

    def __abs__(self) -> _Elements:
        return _Elements(sympy.Abs(self.expression))

    def __bool__(self) -> NoReturn:
        raise _Unknown("asks for the truth of a tensor; torch.where chooses per element")

    def __getitem__(self, index: object) -> NoReturn:
        raise _Unknown(
            "takes some of the outputs or targets: write z1, z2, …, y1, … in an expression"
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **options: _applied(name, (self, *args), options)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = function.__name__
        if function is getattr(functional, name, None) and name.endswith(("_loss", "_logits")):
            return _of_torch(function, *args, **(kwargs or {}))
        return _applied(name, args, dict(kwargs or {}))


def _applied(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """``torch.name`` of elements."""
    name = NAMES.get(name, name)
    if name in ("mean", "sum") and len(args) == 1 and not options:
        return _Total(_expression(args[0]), "elements" if name == "mean" else "sum")
    if name in ("mean", "sum"):
        raise _Unknown(f"takes the {name} over some dimensions only")
    if name in ("to", "type_as", "float", "double", "detach"):
        return args[0]
    if options:
        raise _Unknown(f"calls {name} with {', '.join(options)}")
    values = [_expression(each) for each in args]
    known: dict[str, Callable[..., Expr]] = {
        "square": lambda x: x**2,
        "pow": lambda x, n: x**n,
        "where": select,
        "maximum": maximum,
        "minimum": minimum,
    }
    function = known.get(name) or FUNCTIONS.get(name)
    if function is None:
        raise _Unknown(f"calls {name}")
    try:
        return _Elements(function(*values))
    except TypeError:
        raise _Unknown(f"calls {name} with {len(values)} arguments") from None


def _of_torch(function: Any, z: Any, y: Any, **options: Any) -> Any:
    """A loss of ``torch.nn.functional`` within a function."""
    reduction = options.pop("reduction", "mean")
    options = {key: value for key, value in options.items() if value is not None}
    loss = loss_from_function(functools.partial(function, **options))
    if not isinstance(loss, SeparableLoss) or loss.parameters or loss.weights:
        raise _Unknown(f"calls {function.__name__}, which is no sum over elements")
    values = {OUTPUT: _expression(z), TARGET: _expression(y)}
    each = loss.expression.subs(values, simultaneous=True) * number(loss.scale.factor)
    if reduction == "none":
        return _Elements(each)
    return _Total(each, "elements" if reduction == "mean" else "sum")


def loss_from_function(function: Any) -> Loss:
    """The loss that a function ``(z, y)`` of tensors computes: torch's own, also by ``partial``, or another.

    Raises :class:`LossError` where it does what has no counterpart, and where samples mix.
    """
    from .losses_torch import FUNCTIONS_OF_TORCH, loss_from_module

    inner, options = function, {}
    if isinstance(function, functools.partial) and not function.args:
        inner, options = function.func, function.keywords
    name = getattr(inner, "__name__", type(inner).__name__)
    if inner is getattr(functional, name, None) and name in FUNCTIONS_OF_TORCH:
        try:
            return loss_from_module(FUNCTIONS_OF_TORCH[name](**options))
        except TypeError as error:
            raise _refused(function, name, str(error)) from None
    try:
        found = function(_Elements(OUTPUT), _Elements(TARGET))
    except _Unknown as unknown:
        raise _refused(function, name, str(unknown)) from None
    except Exception as error:
        raise _refused(function, name, f"raises {type(error).__name__}: {error}") from None
    if not isinstance(found, _Total):
        what = "one number an element" if isinstance(found, _Elements) else type(found).__name__
        raise _refused(function, name, f"returns {what}, not a number to minimise")
    name = name if name.isidentifier() else "loss"
    loss = SeparableLoss(name, stable_loss(found.expression), scale=Scale(over=found.over))
    _compare(function, name, loss)
    return loss


def _compare(function: Any, name: str, loss: SeparableLoss) -> None:
    """Raise unless the expression has the function's value on tensors, signs and sizes of all kinds."""
    generator = torch.Generator().manual_seed(0)
    for scale, shift in itertools.product((0.3, 3.0), (0.0, 1.0)):
        drawn = scale * torch.randn(2, 4, 3, generator=generator) + shift
        z, y = drawn.double().unbind()  # numbers of float32, which y.float() leaves as they are
        y = y.abs()
        expected = function(z, y)
        each = plain(loss.expression, {OUTPUT: z, TARGET: y})
        value = each.mean() if loss.scale.over == "elements" else each.sum()
        if not torch.allclose(value, expected.double(), rtol=AGREE, atol=AGREE, equal_nan=True):
            found = f"computes {float(expected):.6g} of tensors, and {float(value):.6g} by symbols"
            raise _refused(function, name, found)


def _refused(function: Any, name: str, found: str) -> LossError:
    code = getattr(function, "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else "the loss"
    return LossError(
        f"the function {name} {found}",
        where=where,
        instead=f"use {SUPPORTED}; a torch.nn loss; or declare it in sympy's terms: "
        "@gncompile.loss_function above def name(z, y)",
    )
