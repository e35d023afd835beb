"""Transfer functions: one declaration each.

A declaration is a name, an expression in ``x``, and its parameters with their defaults. Slope, second
derivative, what the backward pass keeps, and the code for every backend are derived from it::

    register_transfer("mish", "x*tanh(softplus(x))")
    register_transfer("scaled_tanh", "scale*tanh(x/scale)", parameters={"scale": 1.5})

A registered function may be used by name in later expressions: ``u*mish(v)``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sympy
from sympy import Expr, Symbol

from .derive import PointwiseRule, pointwise_rule
from .errors import ExpressionError, RegistrationError, message, nearest
from .functions import PRIMITIVES, SHORTHANDS, number
from .parsing import FUNCTIONS, parse_expression

ARGUMENT = Symbol("x", real=True)


@dataclass(frozen=True)
class TransferFunction:
    """``f(argument)`` with the parameters' values filled in.

    ``domain`` is where it is defined and tested; ``declared_at`` is the ``file:line`` of the declaration.
    """

    name: str
    expression: Expr
    argument: Symbol
    parameters: tuple[tuple[str, float], ...] = ()
    domain: tuple[float, float] = (-math.inf, math.inf)
    doc: str = field(default="", compare=False)
    declared_at: str = field(default="", compare=False)

    def __call__(self, x: Expr) -> Expr:
        """The expression at ``x``, to be composed with others."""
        return self.expression.xreplace({self.argument: sympy.sympify(x)})

    @property
    def rule(self) -> PointwiseRule:
        """Its derivatives and what the backward pass keeps."""
        return pointwise_rule(self.expression, (self.argument,))

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value:g}" for name, value in self.parameters)
        return f"{self.name}({given})" if given else self.name


_DECLARED: dict[str, TransferFunction] = {}


def register_transfer(
    name: str,
    expression: str | Expr,
    *,
    parameters: Mapping[str, float] | None = None,
    domain: tuple[float, float] = (-math.inf, math.inf),
    doc: str = "",
    override: bool = False,
) -> TransferFunction:
    """Declare ``name`` as ``expression`` in ``x`` (text), or in its one symbol that is no parameter (sympy).

    Returns the function at its default parameters. Raises :class:`RegistrationError` for a name in use
    (unless ``override``), and :class:`ExpressionError` for an expression that cannot be derived.
    """
    _check_name(name, override)
    defaults = {key: float(value) for key, value in (parameters or {}).items()}
    general = TransferFunction(
        name,
        _general_expression(name, expression, defaults),
        ARGUMENT,
        tuple(defaults.items()),
        domain,
        doc,
        _caller(),
    )
    function = _with_values(general, defaults)
    _ = function.rule
    _DECLARED[name] = general
    if name not in PRIMITIVES and name not in SHORTHANDS:
        FUNCTIONS[name] = _by_name(name)
    return function


def transfer(name: str, **parameters: float) -> TransferFunction:
    """The registered function ``name``, with ``parameters`` in place of the defaults.

    >>> transfer("leaky_relu", negative_slope=0.2).expression
    select(x, x, x/5)
    """
    if name not in _DECLARED:
        instead = nearest(name, _DECLARED) or f"the known ones are {', '.join(transfer_names())}"
        raise ExpressionError(
            message(
                f"the transfer function {name!r} is unknown",
                instead=f"{instead} New ones are declared by register_transfer(name, expression).",
            )
        )
    general = _DECLARED[name]
    for key in parameters:
        if key not in dict(general.parameters):
            own = ", ".join(dict(general.parameters)) or "none"
            raise ExpressionError(
                message(
                    f"the transfer function {name!r} has no parameter {key!r}",
                    instead=f"{nearest(key, dict(general.parameters))} Its parameters: {own}.".strip(),
                )
            )
    return _with_values(general, {**dict(general.parameters), **parameters})


def transfer_names() -> list[str]:
    """The names of all registered transfer functions, sorted."""
    return sorted(_DECLARED)


def _by_name(name: str) -> Callable[..., Expr]:
    """What an expression calls; looked up when called, so that an override takes effect."""

    def called(x: Expr, **parameters: float) -> Expr:
        return transfer(name, **parameters)(x)

    called.__qualname__ = name
    return called


def _check_name(name: str, override: bool) -> None:
    if not name.isidentifier():
        raise RegistrationError(
            message(
                f"{name!r} cannot name a transfer function",
                instead="use letters, digits and underscores",
            )
        )
    if name in _DECLARED and not override:
        raise RegistrationError(
            message(
                f"the transfer function {name!r} is already declared",
                where=f"first declared at {_DECLARED[name].declared_at}",
                instead="choose another name, or pass override=True",
            )
        )


def _general_expression(name: str, expression: str | Expr, defaults: Mapping[str, float]) -> Expr:
    """The expression in :data:`ARGUMENT` and one real symbol a parameter."""
    symbols = {key: Symbol(key, real=True) for key in defaults}
    if isinstance(expression, str):
        return parse_expression(
            expression, {ARGUMENT.name: ARGUMENT, **symbols}, where=f"transfer function {name!r}"
        )
    free = sorted(expression.free_symbols, key=lambda symbol: symbol.name)
    others = [symbol for symbol in free if symbol.name not in symbols]
    if len(others) > 1:
        raise RegistrationError(
            message(
                f"the transfer function {name!r} has {len(others)} arguments: {', '.join(map(str, others))}",
                instead="name all but one of them in parameters={name: default}",
            )
        )
    real = {symbol: symbols.get(symbol.name, ARGUMENT) for symbol in free}
    return expression.xreplace(real)


def _with_values(general: TransferFunction, values: Mapping[str, float | Expr]) -> TransferFunction:
    exact = {
        Symbol(key, real=True): value if isinstance(value, Expr) else number(float(value))
        for key, value in values.items()
    }
    return TransferFunction(
        general.name,
        general.expression.xreplace(exact),
        general.argument,
        tuple((key, float(value)) for key, value in values.items()),
        general.domain,
        general.doc,
        general.declared_at,
    )


def _caller() -> str:
    """``file:line`` of the code that called this module."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        if frame.f_code.co_name == "<module>":
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


from . import vocabulary as _vocabulary  # noqa: E402, F401  (its declarations need the registry above)
