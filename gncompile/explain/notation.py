"""Formulas as trees: what is typeset as text, MathML or LaTeX is one and the same tree.

::

    Math ::= Name(text) | Number(text) | Word(text)
          |  Infix(operator, parts)      parts side by side, the empty operator is a product
          |  Sum(terms)                  signed terms
          |  Group(body)                 in parentheses where the body is not one thing already
          |  Bracket(open, body, close) | Call(function, arguments, brackets)
          |  Transpose(body) | Inverse(body) | Component(body, which)
          |  Fraction(above, below) | Power(base, exponent) | Root(body) | Cases(branches)
          |  Elementwise(expression, operands)        a sympy expression whose symbols stand for trees

:func:`text` writes a tree in one line. :func:`expanded` turns an elementwise expression into the other kinds,
for the printers that draw fractions and roots (:mod:`gncompile.explain.report`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy

from ..functions.primitives import select
from .cases import Condition, branches, finite, readable, sides


@dataclass(frozen=True)
class Name:
    """A value by its name in the emitted source, or a leaf: ``a_fc1``, ``W[fc1]``, ``Q⁻¹[fc1]``."""

    text: str


@dataclass(frozen=True)
class Number:
    """A number as it is written."""

    text: str


@dataclass(frozen=True)
class Word:
    """Words and upright operators: ``tr``, ``columns of``."""

    text: str


@dataclass(frozen=True)
class Infix:
    """Parts joined by an operator; the empty one is a product."""

    operator: str
    parts: tuple[Math, ...]


@dataclass(frozen=True)
class Sum:
    """Terms with their signs: ``(True, x)`` adds x, ``(False, x)`` subtracts it."""

    terms: tuple[tuple[bool, Math], ...]


@dataclass(frozen=True)
class Group:
    """The body in parentheses, unless it is one name or in brackets already."""

    body: Math


@dataclass(frozen=True)
class Bracket:
    """``[body]``, ``(body)`` or ``|body|``."""

    opening: str
    body: Math
    closing: str


@dataclass(frozen=True)
class Call:
    """``function(arguments)``."""

    function: str
    arguments: tuple[Math, ...]
    brackets: str = "()"


@dataclass(frozen=True)
class Transpose:
    """``bodyᵀ``; of a transpose it is the body."""

    body: Math


@dataclass(frozen=True)
class Inverse:
    """``body⁻¹``."""

    body: Math


@dataclass(frozen=True)
class Component:
    """The weight or the bias inside ``W̄ = [W, b]``."""

    body: Math
    which: str


@dataclass(frozen=True)
class Fraction:
    """``above / below``."""

    above: Math
    below: Math


@dataclass(frozen=True)
class Power:
    """``base^exponent``."""

    base: Math
    exponent: Math


@dataclass(frozen=True)
class Root:
    """``√body``."""

    body: Math


@dataclass(frozen=True)
class Cases:
    """``(value, condition)`` branches; the last condition may be a word."""

    branches: tuple[tuple[Math, Math], ...]


@dataclass(frozen=True)
class Elementwise:
    """A sympy expression; ``operands`` are the trees its symbols stand for."""

    expression: sympy.Expr
    operands: tuple[tuple[sympy.Symbol, Math], ...]


Math = (
    Name | Number | Word | Infix | Sum | Group | Bracket | Call | Transpose | Inverse | Component | Fraction
    | Power | Root | Cases | Elementwise
)  # fmt: skip


def product(*parts: Math) -> Infix:
    """The parts side by side."""
    return Infix("", parts)


def bare(m: Math) -> Math:
    """The tree without parentheses around it, for a place that has brackets or a bar already."""
    return m.body if isinstance(m, Group) else m


# --- one line of text ---------------------------------------------------------------------------------


def text(m: Math) -> str:
    """The tree in one line."""
    match m:
        case Name(name) | Number(name) | Word(name):
            return name
        case Infix(operator, parts):
            between = {"": " ", ",": ", "}.get(operator, f" {operator} ")
            return between.join(map(text, parts))
        case Sum(terms):
            signed = "".join(f" {'+' if plus else '-'} {text(term)}" for plus, term in terms)
            return signed[3:] if terms[0][0] else f"-{signed[3:]}"
        case Group(body):
            return _enclosed(text(body))
        case Bracket(opening, body, closing):
            return f"{opening}{text(body)}{closing}"
        case Call(function, arguments, brackets):
            return f"{function}{brackets[0]}{', '.join(map(text, arguments))}{brackets[1]}"
        case Elementwise(expression, operands) if _is_nested(expression):
            return text(expanded(expression, dict(operands)))
        case Elementwise(expression, operands):
            named = expression.xreplace({s: sympy.Symbol(text(v), real=True) for s, v in operands})
            return str(readable(named))
        case Component(body, which):
            return f"{text(body)}.{which}"
    return _decorated(m)


def _decorated(m: Transpose | Inverse | Fraction | Power | Root | Cases) -> str:
    match m:
        case Transpose(body):
            written = text(body)
            if written.endswith("ᵀ"):
                return written[:-1]
            whole = isinstance(body, Group | Bracket)
            return f"{written if whole else _enclosed(written)}ᵀ"
        case Inverse(body):
            return f"({text(body)})⁻¹"
        case Fraction(above, below):
            return f"({_enclosed(text(above))}/{_enclosed(text(below))})"
        case Power(base, exponent):
            return f"{_enclosed(text(base))}^{_enclosed(text(exponent))}"
        case Root(body):
            return f"√{_enclosed(text(body))}"
        case Cases(rows):
            return "; ".join(f"{text(value)} {text(condition)}" for value, condition in rows)


_NAME = r"[\w.]+(\[[^\[\]]*\])?(⁻¹)?(\[[^\[\]]*\])?[\w.]*"
_GROUP = r"(E|diag|softmax|select)?[\[(](?:[^\[\]()]|\[[^\[\]]*\]|\([^()]*\))*[\])]"


def _enclosed(written: str) -> str:
    """The text in parentheses unless it is one name or one group."""
    return written if re.fullmatch(f"({_NAME}|{_GROUP})ᵀ?", written) else f"({written})"


# --- expressions as trees -----------------------------------------------------------------------------

FUNCTIONS = {"sigmoid": "σ", "sign": "sgn", "atan": "arctan", "asinh": "arsinh"}
"""Functions whose usual notation differs from the name users write."""


def expanded(e: sympy.Expr, operands: Mapping[sympy.Symbol, Math]) -> Math:
    """A sympy expression in the other kinds of tree; symbols without an operand are names."""
    match e:
        case sympy.Symbol():
            return operands.get(e, Name(e.name))
        case sympy.Add():
            return _sum(e, operands)
        case sympy.Mul():
            return _quotient(e, operands)
        case sympy.Pow():
            return _power(e, operands)
        case sympy.Rational() if e.q != 1 or e < 0:
            size = (
                Fraction(Number(str(abs(e.p))), Number(str(e.q))) if e.q != 1 else Number(str(-e))
            )
            return size if e > 0 else Sum(((False, size),))
        case sympy.Number():
            return _decimal(e)
    return _function(e, operands)


def _sum(e: sympy.Add, operands: Mapping[sympy.Symbol, Math]) -> Math:
    """The term without a minus first, as people write ``1 - a²``."""
    signed = [(not term.could_extract_minus_sign(), term) for term in e.as_ordered_terms()]
    signed.sort(key=lambda pair: not pair[0])
    terms = ((plus, expanded(term if plus else -term, operands)) for plus, term in signed)
    return Sum(tuple(terms))


def _quotient(e: sympy.Mul, operands: Mapping[sympy.Symbol, Math]) -> Math:
    if e.could_extract_minus_sign():
        return Sum(((False, _factor(-e, operands)),))
    above: list[Math] = []
    below: list[Math] = []
    for factor in e.as_ordered_factors():
        if isinstance(factor, sympy.Rational):
            above += [Number(str(factor.p))] if factor.p != 1 else []
            below += [Number(str(factor.q))] if factor.q != 1 else []
        elif isinstance(factor, sympy.Pow) and factor.exp.is_number and factor.exp < 0:
            below.append(_factor(1 / factor, operands))
        else:
            above.append(_factor(factor, operands))
    numerator = _several(above) if above else Number("1")
    return Fraction(bare(numerator), bare(_several(below))) if below else numerator


def _several(parts: list[Math]) -> Math:
    return parts[0] if len(parts) == 1 else Infix("", tuple(parts))


def _factor(e: sympy.Expr, operands: Mapping[sympy.Symbol, Math]) -> Math:
    tree = expanded(e, operands)
    return Group(tree) if isinstance(tree, Sum | Cases) else tree


def _power(e: sympy.Pow, operands: Mapping[sympy.Symbol, Math]) -> Math:
    base, exponent = e.args
    if exponent.is_number and exponent < 0:
        return Fraction(Number("1"), bare(expanded(1 / e, operands)))
    if exponent == sympy.Rational(1, 2):
        return Root(bare(expanded(base, operands)))
    return Power(Group(expanded(base, operands)), expanded(exponent, operands))


def _decimal(e: sympy.Number) -> Math:
    mantissa, _, exponent = f"{float(e):g}".partition("e")
    if not exponent:
        return Number(mantissa)
    power = Power(Number("10"), Number(str(int(exponent)).replace("-", "−")))
    return power if mantissa == "1" else Infix("·", (Number(mantissa), power))


def _is_nested(e: sympy.Expr) -> bool:
    """Whether selections stand in selections, which one line of calls would not show."""
    return any(branches(part) for part in readable(e).atoms(select))


def _if(given: Sequence[Condition], operands: Mapping[sympy.Symbol, Math]) -> Math:
    """``if u > v and w ≤ 0``."""
    parts: list[Math] = []
    for condition, positive in given:
        parts.append(Word("and" if parts else "if"))
        if isinstance(condition, finite):
            parts += [*([] if positive else [Word("not")]), expanded(condition, operands)]
        else:
            compared = tuple(expanded(side, operands) for side in sides(condition))
            parts.append(Infix(">" if positive else "≤", compared))
    return product(*parts)


def _function(e: sympy.Expr, operands: Mapping[sympy.Symbol, Math]) -> Math:
    if isinstance(e, select) and not isinstance(named := readable(e), select):
        return expanded(named, operands)
    if isinstance(e, select):
        nested, otherwise = branches(named) or (
            [(named.args[1], [(named.args[0], True)])],
            named.args[2],
        )
        rows = ((expanded(x, operands), _if(given, operands)) for x, given in nested)
        return Cases((*rows, (expanded(otherwise, operands), Word("otherwise"))))
    if not e.args:
        return Name({"Pi": "π", "Exp1": "e"}.get(type(e).__name__, str(e)))
    arguments = tuple(expanded(arg, operands) for arg in e.args)
    if isinstance(e, sympy.exp):
        return Power(Name("e"), arguments[0])
    if isinstance(e, sympy.Abs):
        return Bracket("|", arguments[0], "|")
    return Call(FUNCTIONS.get(type(e).__name__, type(e).__name__), arguments)
