"""Names of emitted variables and functions: Python identifiers, each given once, none of them the file's own.

What a user calls a layer, a parameter or a node may be any text: a keyword, a builtin, two spellings of one
identifier (Python reads ``ﬁ`` as ``fi``), or a hundred thousand characters. :func:`identifier` makes a short
ASCII name of it, :class:`Names` a free one.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Container, Iterable

LONGEST = 80
"""Characters that a name keeps of its hint."""

NAME = r"[A-Za-z]\w*"
_NAME = re.compile(NAME, re.ASCII)

RESERVED = frozenset(
    {
        *keyword.kwlist,
        *(name for name in dir(builtins) if not name.startswith("_")),
        # The arguments and imports of every file,
        *("N", "F", "Q", "L", "S", "torch", "linalg", "memory", "start", "phases", "values"),
        *("scalars", "s", "convolutions", "interpolation", "interpolate", "lookups"),
        *("jacobian_rows", "bind", "kernels", "precision", "exact", "random_state"),
        *("run", "advance", "categorical"),
        # of a step that launches kernels,
        *("products", "moments", "inverses", "tiles", "congruence", "gemm", "Layer", "reduce"),
        *("ElementwiseSettings", "MatrixSettings", "ReduceSettings", "library_product", "softmax"),
        *("elementwise", "grouped_elementwise", "plan_elementwise_group", "grouped_precondition"),
        *("Draw", "grouped_reduce", "plan_sums", "cross_moment", "syrk", "library_call"),
        *("convolve", "convolve_adjoint", "convolve_gradient", "patch_moment"),
        # and of the kernels; Triton's interpreter adds the last three.
        *("triton", "tl", "accurate", "np", "partial", "T"),
    }
)
"""Names that an emitted file uses itself."""


def identifier(hint: str) -> str:
    """``hint`` as a short ASCII identifier without leading underscores; it may be a reserved one."""
    plain = re.sub(r"\W", "_", hint[: 4 * LONGEST], flags=re.ASCII).lstrip("_")[:LONGEST]
    return plain if plain[:1].isalpha() else f"v_{plain}" if plain else "v"


def is_name(text: object) -> bool:
    """Whether ``text`` may stand in an emitted file as a name of a value."""
    return (
        isinstance(text, str)
        and len(text) <= 2 * LONGEST
        and _NAME.fullmatch(text) is not None
        and text not in RESERVED
    )


def free_name(hint: str, taken: Container[str]) -> str:
    """``hint``, or ``hint_2``, ``hint_3``, … where that is taken."""
    name, number = hint, 1
    while name in taken:
        number += 1
        name = f"{hint}_{number}"
    return name


class Names:
    """The names of one file; those in ``taken`` are never given."""

    def __init__(self, taken: Iterable[str] = RESERVED) -> None:
        self._taken = set(taken)
        self._last: dict[str, int] = {}

    def fresh(self, hint: str, place: str = "") -> str:
        """A name not given before: ``hint`` as an identifier, then with its ``place``, then numbered."""
        base = identifier(hint)
        if place and base in self._taken:
            base = identifier(f"{base}_{place}")
        name, number = base, self._last.get(base, 1)
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        self._last[base] = number
        return name
