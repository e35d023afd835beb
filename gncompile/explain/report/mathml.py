"""Formulas as MathML, which browsers draw without any library."""

from __future__ import annotations

import unicodedata
from xml.etree.ElementTree import Element

from ..notation import (
    Bracket,
    Call,
    Cases,
    Component,
    Elementwise,
    Fraction,
    Group,
    Infix,
    Inverse,
    Math,
    Name,
    Number,
    Power,
    Root,
    Sum,
    Transpose,
    Word,
    bare,
    expanded,
)
from .elements import element
from .symbols import as_term, is_one_thing, typeset_name


def math(*parts: Math, relation: str = "") -> Element:
    """A ``<math>`` element; with ``relation`` the parts are its sides."""
    row: list[Element] = []
    for i, part in enumerate(parts):
        row += [operator(relation)] if i else []
        row.append(mathml(part))
    return element("math", *row, displaystyle="true")


def mathml(m: Math) -> Element:
    """The element of one tree."""
    match m:
        case Name(text):
            return _name(*typeset_name(text))
        case Number(text):
            return element("mn", text)
        case Word("Σ"):
            return operator("∑", form="prefix", stretchy="false")
        case Word(text):
            return _words(text)
        case Infix(sign, parts):
            return _joined(sign, [mathml(part) for part in parts])
        case Sum(terms):
            return _sum(terms)
        case Group(body):
            return mathml(body) if is_one_thing(body) else _fenced("(", mathml(body), ")")
        case Bracket(opening, body, closing):
            return _fenced(opening, mathml(bare(body)), closing)
        case Call(function, arguments, brackets):
            inner = _joined(",", [mathml(bare(argument)) for argument in arguments])
            return element("mrow", _function(function), _fenced(brackets[0], inner, brackets[1]))
        case Elementwise(expression, operands):
            return mathml(expanded(expression, dict(operands)))
    return _decorated(m)


def _decorated(m: Transpose | Inverse | Component | Fraction | Power | Root | Cases) -> Element:
    match m:
        case Transpose(Transpose(body)):
            return mathml(body)
        case Transpose(body):
            return element("msup", mathml(Group(bare(body))), element("mi", "⊤"))
        case Inverse(body):
            inverse = element("mrow", operator("−", form="prefix"), element("mn", "1"))
            return element("msup", _fenced("(", mathml(body), ")"), inverse)
        case Component(body, which):
            return element("mrow", mathml(body), element("mtext", f".{which}"))
        case Fraction(above, below):
            return element("mfrac", mathml(above), mathml(below))
        case Power(base, exponent):
            return element("msup", mathml(base), mathml(exponent))
        case Root(body):
            return element("msqrt", mathml(body))
        case Cases(branches):
            rows = [
                element("mtr", element("mtd", mathml(value)), element("mtd", mathml(condition)))
                for value, condition in branches
            ]
            return element(
                "mrow", operator("{", form="prefix"), element("mtable", *rows, class_="cases")
            )


def operator(sign: str, **attributes: str) -> Element:
    """An operator; brackets and sums get their attributes from whoever draws them."""
    return element("mo", sign, **attributes)


def _name(base: str, below: str, inverse: bool) -> Element:
    symbol = _symbol(base)
    subscript = element("mtext", below)
    if inverse:
        power = element("mrow", operator("−", form="prefix"), element("mn", "1"))
        if below:
            return element("msubsup", symbol, subscript, power)
        return element("msup", symbol, power)
    return element("msub", symbol, subscript) if below else symbol


ACCENTS = {
    "\N{COMBINING TILDE}": "~",
    "\N{COMBINING MACRON}": "¯",
    "\N{COMBINING CIRCUMFLEX ACCENT}": "^",
}


def _symbol(base: str) -> Element:
    """A letter, with an accent or primes, or a name of several letters."""
    letter, *rest = list(unicodedata.normalize("NFD", base))
    if not rest:
        return element("mi", letter)
    if rest[0] in ACCENTS:
        return element("mover", element("mi", letter), operator(ACCENTS[rest[0]]), accent="true")
    if rest[0] in "′″":
        return element("mrow", element("mi", letter), operator(rest[0], lspace="0", rspace="0"))
    return element("mtext", base)


def _words(text: str) -> Element:
    return element("mrow", element("mtext", text), element("mspace", width="0.25em"))


UPRIGHT = ("E", "σ")
"""Functions of one letter that are no variables."""


def _function(name: str) -> Element:
    if name.endswith("ᵀ"):
        return element("msup", element("mtext", name[:-1]), element("mi", "⊤"))
    if len(name) == 1:
        return element("mi", name, **({"mathvariant": "normal"} if name in UPRIGHT else {}))
    return element("mtext", name)


def _joined(sign: str, parts: list[Element]) -> Element:
    row: list[Element] = []
    for i, part in enumerate(parts):
        if i:
            row.append(operator(sign) if sign else element("mspace", width="0.2em"))
        row.append(part)
    return row[0] if len(row) == 1 else element("mrow", *row)


def _sum(terms: tuple[tuple[bool, Math], ...]) -> Element:
    row: list[Element] = []
    for i, (plus, term) in enumerate(terms):
        if i:
            row.append(operator("+" if plus else "−"))
        elif not plus:
            row.append(operator("−", form="prefix"))
        row.append(mathml(as_term(term)))
    return element("mrow", *row)


TALL = ("mfrac", "mtable", "msqrt")


def _fenced(opening: str, body: Element, closing: str) -> Element:
    """Brackets grow around what is tall, and not around a subscript."""
    grow = str(any(part.tag in TALL for part in body.iter())).lower()
    left, right = (
        operator(sign, form=form, stretchy=grow)
        for sign, form in ((opening, "prefix"), (closing, "postfix"))
    )
    return element("mrow", left, body, right)
