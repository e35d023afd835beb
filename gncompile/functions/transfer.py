"""Transfer functions: one declaration each.

A declaration is a name, an expression in ``x``, and its parameters with their defaults. Slope, second
derivative, what the backward pass keeps, and the code for every backend are derived from it, and the
derivatives are checked against the expression on the spot::

    register_transfer("mish", "x*tanh(softplus(x))")
    register_transfer("scaled_tanh", "scale*tanh(x/scale)", parameters={"scale": 1.5})

    @transfer_function
    def scaled_tanh(x, scale=1.5):
        return scale * sympy.tanh(x / scale)

A registered function may be used by name in later expressions: ``u*mish(v)``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import sympy
from sympy import Expr, Symbol

from ..base.plugins import TRANSFERS, load_plugins
from ..errors import (
    DeclarationWarning,
    ExpressionError,
    RegistrationError,
    message,
    nearest,
)
from . import vocabulary
from .declarations import (
    Written,
    caller,
    check_expression,
    check_interval,
    check_name,
    check_parameters,
    check_size,
    over_symbols,
    without_piecewise,
)
from .derive import PointwiseRule, pointwise_rule
from .gates import register_gate
from .kinks import jumps
from .parsing import FUNCTIONS, Function, parse_expression
from .primitives import PRIMITIVES, SHORTHANDS, number
from .registration_check import TransferCheck

if TYPE_CHECKING:
    from torch import nn

ARGUMENT = Symbol("x", real=True)
EVERYWHERE = (-math.inf, math.inf)


@dataclass(frozen=True)
class TransferFunction:
    """``f(argument)`` with the parameters' values filled in.

    ``domain`` is the open interval where it is defined and checked; ``declared_at`` is the ``file:line`` of
    the declaration. ``general`` is the expression with a symbol for each parameter.
    """

    name: str
    expression: Expr
    argument: Symbol
    parameters: tuple[tuple[str, float], ...] = ()
    domain: tuple[float, float] = EVERYWHERE
    doc: str = field(default="", compare=False)
    declared_at: str = field(default="", compare=False)
    general: Expr | None = field(default=None, compare=False, repr=False)

    def __call__(self, x: Expr) -> Expr:
        """The expression at ``x``, to be composed with others."""
        return self.expression.xreplace({self.argument: sympy.sympify(x)})

    def at(self, **parameters: float | Expr) -> TransferFunction:
        """The same function with other values of ``parameters``.

        Raises :class:`ExpressionError` for a parameter it does not have.
        """
        own = dict(self.parameters)
        for key in parameters:
            if key not in own:
                raise ExpressionError(
                    f"the transfer function {self.name!r} has no parameter {key!r}",
                    instead=f"{nearest(key, own)} Its parameters: {', '.join(own) or 'none'}.".strip(),
                )
        for key, value in parameters.items():
            if not isinstance(value, Expr):
                check_parameters(self.name, {key: value}, frozenset(), self.declared_at)
        values = {**own, **parameters}
        general = self.expression if self.general is None else self.general
        return TransferFunction(
            self.name,
            general.xreplace({Symbol(key, real=True): _exact(v) for key, v in values.items()}),
            self.argument,
            tuple((key, float(value)) for key, value in values.items()),
            self.domain,
            self.doc,
            self.declared_at,
            self.general,
        )

    def module(self) -> nn.Module:
        """The function as a layer of a network; the compiler reads its expression back when it traces."""
        from .applied import Elementwise
        from .applied import Function as Applied

        return Elementwise(Applied(self.expression, (self.argument,)))

    @property
    def rule(self) -> PointwiseRule:
        """Its derivatives and what the backward pass keeps."""
        return pointwise_rule(self.expression, (self.argument,))

    def check(self) -> None:
        """Raise :class:`RegistrationError` unless what is derived agrees with the declared expression."""
        TransferCheck(
            self.name, self.expression, self.argument, self.domain, self.rule, self.declared_at
        ).run()
        self._warn()

    def _warn(self) -> None:
        """Warn of what slopes do not show: jumps, and no slope at all."""
        found = jumps(self.expression, self.rule, self.domain)
        doubts = [f"jumps by {kink.jump:g} at x = {kink.at:g}" for kink in found]
        if self.rule.slopes[0] == 0:
            doubts.append("has the slope zero wherever it is defined")
        if doubts:
            doubt = message(
                f"the transfer function {self.name!r} {' and '.join(doubts)}",
                where=f"declared at {self.declared_at}" if self.declared_at else None,
                instead="use a continuous function such as a sigmoid or a clamp: training follows slopes, "
                "which do not know of a jump, and layers that only a slope of zero joins to the loss are "
                "refused",
            )
            warnings.warn(doubt, DeclarationWarning, stacklevel=4)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value:g}" for name, value in self.parameters)
        return f"{self.name}({given})" if given else self.name


def _exact(value: float | Expr) -> Expr:
    return value if isinstance(value, Expr) else number(float(value))


_DECLARED: dict[str, TransferFunction] = {}


def register_transfer(
    name: str,
    expression: str | Expr,
    *,
    parameters: Mapping[str, float] | None = None,
    domain: tuple[float, float] = EVERYWHERE,
    doc: str = "",
    override: bool = False,
) -> TransferFunction:
    """Declare ``name`` as ``expression`` in ``x`` (text), or in its one symbol that is no parameter (sympy).

    ``domain`` is the open interval where the function is defined. At a kink, the border of a
    ``select(c, u, v)``, the slope is that of the branch ``v``.

    Returns the function at its default parameters. Raises :class:`RegistrationError` for a name in use
    (unless ``override``), and for an expression that is not finite on its domain or whose derivatives
    overflow in float32; :class:`ExpressionError` for one that cannot be read or derived.
    """
    _require_free(name, override)
    function = define_transfer(name, expression, parameters or {}, domain, doc, caller(__name__))
    function.check()
    return _add(function)


@overload
def transfer_function(function: Callable[..., Any], /) -> TransferFunction: ...


@overload
def transfer_function(
    *, name: str | None = None, domain: tuple[float, float] = EVERYWHERE, override: bool = False
) -> Callable[[Callable[..., Any]], TransferFunction]: ...


def transfer_function(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    domain: tuple[float, float] = EVERYWHERE,
    override: bool = False,
) -> TransferFunction | Callable[[Callable[..., Any]], TransferFunction]:
    """Declare a Python function of sympy symbols; a decorator, with or without arguments.

    The function's first argument is the transfer function's, those with defaults are its parameters, its
    docstring is the documentation, and its name the name unless ``name`` is given. It is called once.
    Raises what :func:`register_transfer` does.

    >>> @transfer_function(override=True)
    ... def leaning(x, lean=0.1):
    ...     return x + lean * sympy.sin(x)
    >>> leaning.rule.slopes[0]
    cos(x)/10 + 1
    """

    def declare(function: Callable[..., Any]) -> TransferFunction:
        written = Written.read(function, "transfer function", 1)
        chosen = name or written.name
        _require_free(chosen, override)
        symbols = {key: Symbol(key, real=True) for key in written.parameters}
        expression = written.expression(ARGUMENT, **symbols)
        declared = define_transfer(
            chosen, expression, written.parameters, domain, written.doc, written.declared_at
        )
        declared.check()
        return _add(declared)

    return declare if function is None else declare(function)


def define_transfer(
    name: str,
    expression: str | Expr,
    parameters: Mapping[str, float],
    domain: tuple[float, float] = EVERYWHERE,
    doc: str = "",
    declared_at: str = "",
    functions: Mapping[str, Function] | None = None,
    arguments: tuple[str, ...] = (ARGUMENT.name,),
    where: str = "",
) -> TransferFunction:
    """The function of a declaration, neither derived nor checked nor registered yet.

    ``functions`` are those that the text may call, by default all registered ones; ``arguments`` are the
    names that stand for the argument. ``where`` names the place in error texts.
    """
    check_name("transfer function", name)
    check_expression("transfer function", name, expression, "transfer_function", declared_at)
    low, high = check_interval("transfer function", name, "domain", domain, declared_at)
    domain = (low, high)
    defaults = check_parameters(name, parameters, frozenset({*arguments, "pi"}), declared_at)
    symbols = {key: Symbol(key, real=True) for key in defaults}
    where = where or f"transfer function {name!r}"
    if isinstance(expression, str):
        names = {**dict.fromkeys(arguments, ARGUMENT), **symbols}
        general = parse_expression(expression, names, functions, where=where)
    else:
        general = _in_argument(name, without_piecewise(expression, where), symbols)
    check_size(general, (ARGUMENT,), where)
    return TransferFunction(
        name, general, ARGUMENT, tuple(defaults.items()), domain, doc, declared_at, general
    ).at()


def _in_argument(name: str, expression: Expr, symbols: Mapping[str, Symbol]) -> Expr:
    """A sympy expression over :data:`ARGUMENT`, whatever its one symbol that is no parameter is called."""
    free = sorted(expression.free_symbols, key=lambda symbol: symbol.name)
    others = [symbol for symbol in free if symbol.name not in symbols]
    if len(others) > 1:
        raise RegistrationError(
            f"the transfer function {name!r} has {len(others)} arguments: {', '.join(map(str, others))}",
            instead="name all but one of them in parameters={name: default}",
        )
    return over_symbols(expression, {**symbols, **{s.name: ARGUMENT for s in others}})


def transfer(name: str, **parameters: float) -> TransferFunction:
    """The registered function ``name``, with ``parameters`` in place of the defaults.

    >>> transfer("leaky_relu", negative_slope=0.2).expression
    select(x, x, x/5)
    """
    if name not in _DECLARED:
        load_plugins(TRANSFERS)
    if name not in _DECLARED:
        instead = nearest(name, _DECLARED) or f"the known ones are {', '.join(transfer_names())}."
        raise ExpressionError(
            f"the transfer function {name!r} is unknown",
            instead=f"{instead} New ones are declared by register_transfer(name, expression).",
        )
    return _DECLARED[name].at(**parameters)


def transfer_names() -> list[str]:
    """The names of all registered transfer functions, those of installed packages included, sorted."""
    load_plugins(TRANSFERS)
    return sorted(_DECLARED)


def is_registered(name: str) -> bool:
    """Whether ``name`` is a transfer function, and not a primitive or a gate, declared so far."""
    return name in _DECLARED


def called_by_name(function: TransferFunction, name: str) -> Function:
    """What an expression calls for ``name``: ``name(u)``, or ``name(u, parameter=value)``."""

    def called(x: Expr, **parameters: Expr) -> Expr:
        return function.at(**parameters)(x)

    called.__qualname__ = name
    return called


def _require_free(name: str, override: bool) -> None:
    if name in _DECLARED and not override:
        raise RegistrationError(
            f"the transfer function {name!r} is already declared",
            where=f"first declared at {_DECLARED[name].declared_at}",
            instead="choose another name, or pass override=True",
        )


def _add(function: TransferFunction) -> TransferFunction:
    name = function.name
    _DECLARED[name] = function
    if name not in PRIMITIVES and name not in SHORTHANDS:
        FUNCTIONS[name] = called_by_name(function, name)
    return function


for _entry in vocabulary.TRANSFERS:  # the tests check these, to keep imports quick
    _add(
        define_transfer(
            _entry.name,
            _entry.expression,
            _entry.parameters,
            doc=_entry.doc,
            declared_at=_entry.declared_at,
        )
    )
for _entry in vocabulary.GATES:  # which may call the functions above
    register_gate(_entry.name, _entry.expression, doc=_entry.doc)

BUILT_IN: Mapping[str, TransferFunction] = dict(_DECLARED)
"""What comes with the compiler, whatever overrides it: a frontend means torch's function by its name, and a
model file cannot give it another meaning."""
