"""Launches as records, before they are text: which template is called, with which tensors and functions.

::

    expression ::= Tensor | TileFunction | Call | (expression, …) | [expression, …] | literal
    literal    ::= text of a number, of a string, or of a constant of the file

What a record needs, imports and tensors, is asked of the record; :func:`lines` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from .layout import WIDTH, filled

IMPORTS = {
    "congruence": ("congruence",),
    "convolution": ("convolve", "convolve_adjoint", "convolve_gradient", "patch_moment"),
    "elementwise": (
        "ElementwiseSettings",
        "elementwise",
        "grouped_elementwise",
        "plan_elementwise_group",
    ),
    "gemm": ("gemm",),
    "interpolate": ("interpolate",),
    "launches": ("run",),
    "library": ("library_call", "library_product"),
    "precondition": ("Layer", "grouped_precondition"),
    "random": ("Draw",),
    "reduce": ("ReduceSettings", "grouped_reduce", "plan_sums", "reduce"),
    "sampling": ("advance", "categorical"),
    "settings": ("MatrixSettings",),
    "softmax": ("softmax",),
    "syrk": ("cross_moment", "syrk"),
}
"""The names a call may use, by the module of ``triton_kernels`` they come from."""

MODULES = {
    "products": "grouped_gemm",
    "moments": "grouped_syrk",
    "inverses": "inverse",
    "tiles": "pointwise_groups",
}
"""Modules whose plans and problems have equal names, as they are called."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the step by its name, and what is seen of it: ``[:, :-1]``, ``.diagonal()``."""

    name: str
    view: str = ""


@dataclass(frozen=True)
class TileFunction:
    """A device function of ``kernels.py`` by its name."""

    name: str


@dataclass(frozen=True)
class Call:
    """``function(arguments, word=value, …)``; of a template, the launches that it builds."""

    function: str
    arguments: tuple[Expression, ...] = ()
    words: tuple[tuple[str, Expression], ...] = ()
    template: bool = False

    @property
    def spelling(self) -> str:
        """What is called."""
        return f"{self.function}.launches" if self.template else self.function


Expression: TypeAlias = (
    "Tensor | TileFunction | Call | tuple[Expression, ...] | list[Expression] | str"
)


def call(function: str, *arguments: Expression, **words: Expression | None) -> Call:
    """A call of a function or class; keywords without a value (None) are left out."""
    given = tuple((word, value) for word, value in words.items() if value is not None)
    return Call(function, arguments, given)


def template(function: str, *arguments: Expression, **words: Expression | None) -> Call:
    """The launches of a template."""
    return replace(call(function, *arguments, **words), template=True)


# --- asked of records ---------------------------------------------------------------------------------


def parts(expression: Expression) -> Iterator[Tensor | TileFunction | Call]:
    """The tensors, device functions and calls in an expression, in the order they are printed."""
    match expression:
        case tuple() | list():
            inner: Sequence[Expression] = expression
        case Call(_, arguments, words):
            yield expression
            inner = (*arguments, *(value for _, value in words))
        case Tensor() | TileFunction():
            yield expression
            return
        case _:
            return
    for each in inner:
        yield from parts(each)


def functions(expression: Expression) -> set[str]:
    """What an expression calls."""
    return {each.function for each in parts(expression) if isinstance(each, Call)}


def imports(called: Collection[str]) -> list[str]:
    """The imports of a file that calls these functions."""
    modules = {name.split(".")[0] for name in called if "." in name}
    found = [
        f"from gncompile.triton_kernels import {module} as {name}"
        for name, module in MODULES.items()
        if name in modules
    ]
    for module, names in IMPORTS.items():
        used = [name for name in names if name in called]
        if used:
            opening, closing = ("(", ")") if len(used) > 1 else ("", "")
            source = f"from gncompile.triton_kernels.{module} import {opening}"
            found += filled(source, used, closing, WIDTH)
    return found


# --- printed ------------------------------------------------------------------------------------------


def _spelled(leaf: Tensor | TileFunction) -> str:
    return f"kernels.{leaf.name}" if isinstance(leaf, TileFunction) else leaf.name


def text(expression: Expression, spell: Callable[[Tensor | TileFunction], str] = _spelled) -> str:
    """An expression in one line; ``spell`` says how tensors and device functions are called."""
    match expression:
        case Tensor():
            return spell(expression) + expression.view
        case TileFunction():
            return spell(expression)
        case Call():
            return f"{expression.spelling}({_listed(expression, spell)})"
        case tuple():
            return f"({_listed(expression, spell)}{',' if len(expression) == 1 else ''})"
        case list():
            return f"[{_listed(expression, spell)}]"
    return expression


def _listed(expression: Expression, spell: Callable[[Tensor | TileFunction], str]) -> str:
    return ", ".join(word + text(value, spell) for word, value in _elements(expression))


def _elements(expression: Expression) -> list[tuple[str, Expression]]:
    """What stands between the brackets of an expression, with ``word=`` before the keywords."""
    if isinstance(expression, Call):
        words = [(f"{word}=", value) for word, value in expression.words]
        return [*(("", each) for each in expression.arguments), *words]
    return [("", each) for each in expression] if isinstance(expression, tuple | list) else []


def lines(expression: Expression, width: int) -> list[str]:
    """An expression in lines of at most ``width``, and a comma.

    Tuples and calls are filled; a template, and whatever holds a list or a long call, has an argument or
    element a line.
    """
    whole, inner = text(expression), _elements(expression)
    if len(whole) <= width or not inner:
        return [whole]
    is_plan = isinstance(expression, Call) and expression.template
    opening = f"{expression.spelling}(" if isinstance(expression, Call) else "("
    room = width - len(f"{opening},")
    wide = any(isinstance(e, list) or _is_long(e, room) for _, e in inner)
    if wide or is_plan or isinstance(expression, list):
        return _broken(expression, width)
    only = "," if isinstance(expression, tuple) and len(expression) == 1 else ""
    return filled(opening, [word + text(each) for word, each in inner], f"{only})", width)


def _is_long(expression: Expression, room: int) -> bool:
    return isinstance(expression, Call) and len(text(expression)) > room


def _broken(expression: Expression, width: int) -> list[str]:
    """A call or list with an element a line; a list that is all keeps to the brackets of its call."""
    inner, opening, closing = _elements(expression), "[", "]"
    if isinstance(expression, Call):
        opening, closing = f"{expression.spelling}(", ")"
        (_, only), *others = inner
        if isinstance(only, list) and not others:
            first, *rest, last = _broken(only, width)
            return [opening + first, *rest, last + closing]
    found = []
    for word, value in inner:
        first, *rest = lines(value, width - len("    ") - len(word))
        *before, last = [word + first, *rest]
        found += [*before, f"{last},"]
    return [opening, *(f"    {line}" for line in found), closing]


def elements(calls: Sequence[Call], width: int) -> list[str]:
    """The lines of a list of launches, indented; those of a template are taken one by one."""
    found = []
    for each in calls:
        first, *rest = lines(each, width - len("    *,"))
        *before, last = [f"*{first}" if each.template else first, *rest]
        found += [*before, f"{last},"]
    return [f"    {line}" for line in found]
