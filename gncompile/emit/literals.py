"""The one way of values and foreign text into emitted source: as a literal, a name, a comment or a docstring.

Module paths, names of nodes, parameters and models, options and constants come from users and from files.
Whatever they hold, what is written here is that value and nothing else: a literal that Python reads back as
the same number or string, an identifier, or one line of a comment.
"""

from __future__ import annotations

import math

from ..base.names import is_name
from ..errors import InternalError
from ..program.program_check import DIMENSIONS
from ..program.specs import Dim

LONGEST = 300
"""Characters of a line of a comment or docstring; longer ones are cut."""


def literal(value: object) -> str:
    """Python text that evaluates to ``value``: None, bool, int, float, string, or a tuple or list of them.

    Strings stand in single quotes. Infinities and NaN, which have no literal, become calls of ``float``.
    Raises :class:`InternalError` for any other type, subclasses included: what is printed must not be
    decided by a foreign ``__repr__``.
    """
    if value is None or type(value) in (bool, int):
        return repr(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if type(value) is str:
        return "'" + repr('"' + value)[2:]
    if type(value) is tuple:
        inner = ", ".join(map(literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if type(value) is list:
        return f"[{', '.join(map(literal, value))}]"
    raise InternalError(f"no literal for a {type(value).__name__} in emitted source")


def plain_name(text: str) -> str:
    """``text``, which has to be an identifier that no emitted file uses itself."""
    if not is_name(text):
        raise InternalError(f"{text[:LONGEST]!r} cannot be a name in emitted source")
    return text


def quoted(text: str) -> str:
    """A name as a string, in double quotes."""
    return f'"{plain_name(text)}"'


def dimension(dim: Dim) -> str:
    """A dimension: a number, or one of the symbols that ``bind`` takes."""
    if isinstance(dim, str) and dim not in DIMENSIONS:
        raise InternalError(f"{dim[:LONGEST]!r} is no dimension of an emitted step")
    return dim if isinstance(dim, str) else literal(dim)


def comment(text: str) -> str:
    """``text`` as one line without quotes that end a string; what does not print is written as an escape.

    Line breaks of every kind, form feeds and marks that turn the direction of reading are such.
    """
    shown = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return shown.replace("\\", "/").replace('"', "'").rstrip()


def docstring(text: str) -> str:
    """The lines of ``text`` for the inside of a docstring, each as in :func:`comment`."""
    return "\n".join(map(comment, text.split("\n")))
