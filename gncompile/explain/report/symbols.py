"""How names and groups look in typeset formulas, whatever the language they are written in."""

from __future__ import annotations

import re

from ..notation import (
    Bracket,
    Call,
    Elementwise,
    Group,
    Infix,
    Inverse,
    Math,
    Name,
    Number,
    Root,
    Sum,
    Transpose,
    Word,
    expanded,
)

SIGNS = {
    "grad": "∇",
    "delta": "Δ",
    "pi": "π",
    "epsilon": "ε",
    "kappa": "κ",
    "rho": "ρ",
    "phi": "φ",
}
"""Values of the program that the field writes with a sign."""


def typeset_name(text: str) -> tuple[str, str, bool]:
    """Base, subscript, and whether it is an inverse: ``W[fc1]`` and ``a_fc1`` have the subscript fc1.

    >>> typeset_name("Q⁻¹[fc1]"), typeset_name("grad_fc1"), typeset_name("exact_trace")
    (('Q', 'fc1', True), ('∇', 'fc1', False), ('exact_trace', '', False))
    """
    if leaf := re.fullmatch(r"(.+?)(⁻¹)?\[(.*)\]", text):
        return leaf[1], leaf[3], bool(leaf[2])
    if text in SIGNS:
        return SIGNS[text], "", False
    words = "|".join(SIGNS)
    if value := re.fullmatch(rf"({words}|[^\W\d_]̄?)_(.+)", text):
        return SIGNS.get(value[1], value[1]), value[2], False
    if numbered := re.fullmatch(r"([^\W\d_])(\d+)(?:_(.+))?", text):
        return numbered[1], ", ".join(filter(None, numbered.groups()[1:])), False
    return text, "", False


def as_term(m: Math) -> Math:
    """A product as a term of a sum, where it needs no parentheses."""
    return m.body if isinstance(m, Group) and isinstance(m.body, Infix) else m


def is_one_thing(m: Math) -> bool:
    """Whether a tree stands without parentheses inside another one."""
    match m:
        case Elementwise(expression, operands):
            return is_one_thing(expanded(expression, dict(operands)))
        case Infix(_, parts):
            return len(parts) == 1 and is_one_thing(parts[0])
        case Sum(terms):
            return len(terms) == 1 and terms[0][0] and is_one_thing(terms[0][1])
        case Group(body):
            return is_one_thing(body)
    return isinstance(m, Name | Number | Word | Bracket | Call | Transpose | Inverse | Root)
