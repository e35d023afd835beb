"""What a caller or a file gives for an option, checked by pydantic and explained in our words."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import CompileError, nearest, require_known

T = TypeVar("T")

WHOLE_BOUND = 1 << 63
"""No whole number is as large."""
STRICT = ConfigDict(strict=True, allow_inf_nan=False)
Count = Annotated[int, Field(ge=1, lt=WHOLE_BOUND, description="a whole number, 1 or greater")]
Steps = Annotated[int, Field(ge=0, lt=WHOLE_BOUND, description="a whole number, 0 or greater")]
SHOWN_CHARACTERS = 100
"""Characters of a wrong value that an error shows."""
BOUNDS = (
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    "finite_number",
)
"""What pydantic calls a value of the right type that is too small or too large."""


def by_pattern(name: str, given: Mapping[str, T], keys: Collection[str]) -> dict[str, T]:
    """For those of ``keys`` that a pattern matches, what the last such pattern of an option says.

    Raises :class:`~gncompile.errors.CompileError` for a pattern that matches none.
    """
    for pattern in given:
        if not any(fnmatchcase(key, pattern) for key in keys):
            raise CompileError(
                f"no layer matches the pattern {pattern!r} of {name}. "
                f"{nearest(pattern, keys)}".rstrip(),
                instead=f"the layers are {', '.join(keys)}",
            )
    matches = (
        (key, said) for pattern, said in given.items() for key in keys if fnmatchcase(key, pattern)
    )
    found = dict(matches)
    return {key: found[key] for key in keys if key in found}


def checked(name: str, value: object, kind: Any, wanted: str) -> Any:
    """``value`` as the annotated type; ``wanted`` tells what to pass instead of anything else."""
    return explained(name, value, TypeAdapter(kind, config=STRICT).validate_python, wanted)


def explained(name: str, value: object, check: Callable[[Any], Any], wanted: str) -> Any:
    """What ``check`` makes of ``value`` in Python's own numbers, texts, tuples and dictionaries.

    Raises :class:`~gncompile.errors.CompileError` in place of pydantic's error: for an unknown name with the
    nearest known one, else with ``wanted``.
    """
    try:
        return check(_plain(value))
    except ValidationError as error:
        found = max(error.errors(), key=lambda e: (_decisive(e), len(e["loc"])))
    kind, at, option = found["type"], found["loc"], name
    if isinstance(value, Mapping) and len(at) > 1:  # of a union: the member, the key, …
        name, value = f"{name}[{at[1]!r}]"[:SHOWN_CHARACTERS], value.get(at[1])
    if kind == "literal_error" and isinstance(value, str):
        known = re.findall(r"'(\w+)'", found["ctx"]["expected"])
        require_known(option, value, known)
    shown = f" = {value!r}"[:SHOWN_CHARACTERS] if type(value) in (bool, int, float, str) else ""
    typed = "" if kind in BOUNDS else f" is of type {type(value).__name__}"
    raise CompileError(f"option {name}{shown}{typed}", instead=f"pass {wanted}")


def _decisive(error: Any) -> bool:
    """Whether this error of a union's members tells what is wrong: a bound, or an unknown name."""
    return error["type"] in BOUNDS or (
        error["type"] == "literal_error" and isinstance(error["input"], str)
    )


def _plain(value: object) -> object:
    """A list as a tuple, a mapping as a dictionary, and what they hold as Python's own."""
    if isinstance(value, list | tuple):
        return tuple(map(_own, value))
    if isinstance(value, Mapping):
        return {_own(key): _own(item) for key, item in value.items()}
    return _own(value)


def _own(value: object) -> object:
    """A number or a text of any library as Python's; of anything else its type, which no option takes.

    pydantic would ask a tensor for its ``__float__``.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        try:
            return float(value)
        except (OverflowError, ValueError):
            return type(value)
    if isinstance(value, str):
        return str(value)
    return None if value is None else type(value)
