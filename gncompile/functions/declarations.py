"""What declarations of transfer functions and of losses have in common: reading what the user wrote."""

from __future__ import annotations

import inspect
import keyword
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from types import FunctionType
from typing import Any

import sympy
from sympy import Expr, Symbol

from ..errors import ExpressionError, RegistrationError
from .primitives import number, select


def check_name(kind: str, name: str, reserved: frozenset[str] = frozenset()) -> None:
    """Raise :class:`RegistrationError` unless ``name`` can be written in an expression."""
    if (
        isinstance(name, str)
        and name.isidentifier()
        and name.isascii()
        and not keyword.iskeyword(name)
    ):
        if name not in reserved:
            return
        found, instead = f"the name {name!r} is reserved", "choose another name"
    else:
        found, instead = f"{name!r} cannot name a {kind}", "use letters, digits and underscores"
    raise RegistrationError(found, instead=instead)


def check_expression(
    kind: str, name: str, expression: object, decorator: str, declared_at: str = ""
) -> None:
    """Raise :class:`RegistrationError` unless ``expression`` is text or sympy's."""
    if isinstance(expression, str | Expr):
        return
    found = type(expression).__name__
    instead = "write it as text, or as a sympy expression"
    if callable(expression):
        instead = f"declare a Python function of sympy symbols with @gncompile.{decorator} above it"
    raise RegistrationError(
        f"the {kind} {name!r} is given as a {found}, not as an expression",
        where=declared_at or None,
        instead=instead,
    )


def check_interval(
    kind: str, name: str, what: str, given: object, declared_at: str = ""
) -> tuple[float, float]:
    """``(low, high)`` as floats; :class:`RegistrationError` unless they are two numbers, low < high."""
    pair = tuple(given) if isinstance(given, tuple | list) else ()
    numbers = len(pair) == 2 and all(_is_number(end) for end in pair)
    if numbers and (pair[0] < pair[1] or (what == "targets" and pair[0] == pair[1])):
        return float(pair[0]), float(pair[1])
    raise RegistrationError(
        f"{what}={given!r} of the {kind} {name!r} "
        + ("is an empty interval" if numbers else "is no pair of numbers"),
        where=declared_at or None,
        instead=f"give {what}=(low, high) with low < high",
    )


def check_parameters(
    name: str, parameters: object, reserved: frozenset[str], declared_at: str = ""
) -> dict[str, float]:
    """Names and finite numbers of the parameters; :class:`RegistrationError` for anything else."""
    if not isinstance(parameters, Mapping):
        raise RegistrationError(
            f"the parameters of {name!r} are given as a {type(parameters).__name__}",
            where=declared_at or None,
            instead='write parameters={"name": default, …}',
        )
    for key, value in parameters.items():
        check_name("parameter", key, reserved=reserved)
        if not (_is_number(value) and math.isfinite(value)):
            raise RegistrationError(
                f"the parameter {key!r} of {name!r} is {value!r}, not a finite number",
                where=declared_at or None,
                instead="give one number; for a number a feature write the product in forward",
            )
    return {key: float(value) for key, value in parameters.items()}


def _is_number(value: object) -> bool:
    """Whether ``value`` is a real number and not NaN; numpy's scalars count, booleans do not."""
    if isinstance(value, bool) or not isinstance(value, Real | sympy.Number):
        return False
    return not math.isnan(value)


@dataclass(frozen=True)
class Written:
    """A Python function read as a declaration: its symbols' names, its keyword defaults, its text."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    parameters: Mapping[str, float]
    doc: str
    declared_at: str

    @classmethod
    def read(cls, function: Callable[..., Any], kind: str, arguments: int) -> Written:
        """``function``'s signature, ``arguments`` without default first, then parameters with a number.

        Raises :class:`RegistrationError` for any other signature.
        """
        if not isinstance(function, FunctionType):
            raise RegistrationError(
                f"a {kind} is declared from a plain function, got {type(function).__name__}",
                instead="write def name(x, parameter=default): return an expression",
            )
        code = function.__code__
        place = f"{code.co_filename}:{code.co_firstlineno}"
        listed = list(inspect.signature(function).parameters.values())
        names = tuple(p.name for p in listed[:arguments])
        bare = [p for p in listed if p.default is p.empty]
        usual = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in listed)
        numbers = all(type(p.default) in (int, float) for p in listed[arguments:])
        if not usual or len(bare) != arguments or listed[:arguments] != bare or not numbers:
            raise RegistrationError(
                f"the {kind} {function.__name__!r} has the signature {inspect.signature(function)}",
                where=place,
                instead=f"take {arguments} argument{'s' * (arguments > 1)} without default, then "
                "parameters with numbers as defaults",
            )
        defaults = {p.name: float(p.default) for p in listed[arguments:]}
        doc = inspect.getdoc(function) or ""
        return cls(function.__name__, function, names, defaults, doc, place)

    def expression(self, *arguments: Any, **parameters: Expr) -> Expr:
        """What the function returns for symbols; :class:`RegistrationError` unless that is an expression."""
        try:
            value = sympy.sympify(self.function(*arguments, **parameters), strict=True)
        except (TypeError, ValueError, AttributeError, sympy.SympifyError) as error:
            raise RegistrationError(
                f"the function {self.name!r} does not yield an expression: {error}",
                where=self.declared_at,
                instead="use sympy's functions and gncompile.functions; for cases select(condition, "
                "value where it is positive, value elsewhere)",
            ) from error
        if not isinstance(value, Expr):
            raise RegistrationError(
                f"the function {self.name!r} returns a {type(value).__name__}, no expression",
                where=self.declared_at,
                instead="return one sympy expression",
            )
        return value


def without_piecewise(expression: Expr, where: str = "") -> Expr:
    """``Piecewise((u, a > b), …, (v, True))`` as ``select(a - b, u, …)``, innermost first.

    Raises :class:`ExpressionError` for conditions other than one inequality, and without a last case.
    """

    def rewritten(piecewise: sympy.Piecewise) -> Expr:
        *cases, (result, last) = piecewise.args
        if last != sympy.true:
            raise _no_select(piecewise, "its last case has a condition", where)
        for value, condition in reversed(cases):
            if not isinstance(condition, sympy.core.relational._Inequality):
                raise _no_select(piecewise, f"the condition {condition} is no inequality", where)
            difference = condition.gts - condition.lts
            if condition.func in (sympy.StrictGreaterThan, sympy.StrictLessThan):
                result = select(difference, value, result)
            else:
                result = select(-difference, result, value)
        return result

    return expression.replace(sympy.Piecewise, lambda *cases: rewritten(sympy.Piecewise(*cases)))


def _no_select(piecewise: Expr, why: str, where: str) -> ExpressionError:
    return ExpressionError(
        f"{piecewise} cannot be written with select: {why}",
        where=where or None,
        instead="use one inequality a case and (value, True) last",
    )


def over_symbols(expression: Expr, symbols: Mapping[str, Symbol]) -> Expr:
    """``expression`` with its symbols replaced by those of the same name, and decimals by exact numbers.

    Symbols of other names stay as they are.
    """
    exact: dict[Expr, Expr] = {f: number(float(f)) for f in expression.atoms(sympy.Float)}
    named = {s: symbols[s.name] for s in expression.free_symbols if s.name in symbols}
    return expression.xreplace({**exact, **named})


def caller(*inside: str) -> str:
    """``file:line`` of the nearest code outside the modules ``inside`` (``__name__`` of each)."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, *inside):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@dataclass(frozen=True)
class BuiltIn:
    """A transfer function or gate of the vocabulary as it is written there."""

    name: str
    expression: str
    parameters: Mapping[str, float]
    doc: str
    declared_at: str


TRANSFERS: list[BuiltIn] = []
GATES: list[BuiltIn] = []


def built_in(
    name: str, expression: str, *, parameters: Mapping[str, float] | None = None, doc: str = ""
) -> None:
    """List a transfer function of the vocabulary."""
    TRANSFERS.append(BuiltIn(name, expression, parameters or {}, doc, caller()))


def built_in_gate(name: str, expression: str, *, doc: str = "") -> None:
    """List a gate of the vocabulary."""
    GATES.append(BuiltIn(name, expression, {}, doc, caller()))


def shortened(text: str, width: int = 60) -> str:
    """``text`` cut to ``width`` characters, for a name in messages."""
    return text if len(text) <= width else text[: width - 2] + " …"


def tree_size(expression: Expr, known: dict[Expr, int]) -> int:
    """The parts of an expression written out; ``known`` has what was counted before.

    sympy shares equal parts: ``relu`` written out 30 times over is 30 objects and 2³⁰ parts. Most of what
    walks an expression meets every part, so this is asked first, and each object is counted once.
    """
    if expression not in known:
        known[expression] = 1 + sum(tree_size(arg, known) for arg in expression.args)
    return known[expression]


def derivative_size(expression: Expr, arguments: tuple[Symbol, ...]) -> int:
    """An upper bound, found without building them, on the parts of value and first two derivatives.

    By the sum, product and chain rules: a product of n factors has n terms in its slope, n² in the next.
    """
    known: dict[Expr, tuple[int, int, int]] = {}

    def sizes(e: Expr) -> tuple[int, int, int]:
        if e not in known:
            parts = [sizes(arg) for arg in e.args]
            if not e.args:
                known[e] = (1, int(e in arguments), 0)
            elif any(first for _, first, _ in parts):
                known[e] = _combined(e, parts)
            else:  # free of the arguments
                known[e] = (1, 0, 0)
        return known[e]

    return sum(sizes(expression))


def _combined(e: Expr, parts: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    value = 1 + sum(s for s, _, _ in parts)
    first = sum(d for _, d, _ in parts)
    second = sum(dd for _, _, dd in parts)
    if isinstance(e, sympy.Add | select):
        return value, first, second
    varying = sum(d > 0 for _, d, _ in parts)
    if isinstance(e, sympy.Mul):
        pairs = varying * (varying - 1)
        return value, first + varying * value, second + 2 * varying * first + pairs * value
    return value, first + 2 * value, second + 2 * first + 3 * value


MAX_PARTS = 1000
"""Parts of an expression written out; those of the vocabulary have up to 20, textbook losses up to 100."""
MAX_DERIVATIVE_SIZE = 10_000
"""Beyond this many parts deriving and checking take tens of seconds; usual functions have some hundreds."""


def too_large(parts: int, where: str) -> ExpressionError:
    """The error about an expression of more than :data:`MAX_PARTS` parts."""
    return ExpressionError(
        f"this expression has {parts} parts, its functions written out; at most {MAX_PARTS} are allowed",
        where=where or None,
        instead="nest functions less deep (relu, clamp and gelu write their argument twice), or use "
        "several layers or nodes",
    )


def check_size(expression: Expr, arguments: tuple[Symbol, ...], where: str) -> None:
    """Raise :class:`ExpressionError` for an expression out of proportion, itself or by its derivatives."""
    parts = tree_size(expression, {})
    if parts > MAX_PARTS:
        raise too_large(parts, where)
    size = derivative_size(expression, arguments)
    if size > MAX_DERIVATIVE_SIZE:
        raise ExpressionError(
            f"the derivatives of this expression have up to {size} parts; at most "
            f"{MAX_DERIVATIVE_SIZE} are allowed",
            where=where,
            instead="write it with fewer factors, or as several functions",
        )
