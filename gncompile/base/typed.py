"""Whether a value is of an annotated type, exactly: the check of a step program's operations.

Python's annotations promise nothing at run time, and what stands for a ``bool`` may be any object with any
``__repr__`` and ``__eq__``. Here a ``bool`` is no ``int``, an ``int`` no ``float``, and subclasses do not
count.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import sympy

LARGEST = 1 << 63
"""No whole number is as large, nor as small as its negative."""

Check = Callable[[object], bool]


@cache
def hints(cls: Any) -> dict[str, Any]:
    """The annotations of a dataclass's fields, evaluated."""
    known = get_type_hints(cls)
    return {field.name: known[field.name] for field in dataclasses.fields(cls)}


def misfits(record: Any) -> list[str]:
    """The fields of a dataclass whose values are not of the annotated types."""
    kind: Any = type(record)
    return [name for name, fits in _checks(kind) if not fits(getattr(record, name))]


@cache
def _checks(cls: type) -> tuple[tuple[str, Check], ...]:
    return tuple((name, check_of(hint)) for name, hint in hints(cls).items())


@cache
def check_of(hint: Any) -> Check:
    """The test for one annotation.

    Known are ``None``, ``bool``, ``int``, ``float`` (not NaN), ``str``, literals, enumerations, dataclasses
    (with their fields), expressions and symbols of sympy, and unions, tuples and mappings of these.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union_check(args)
    if origin is Literal:
        return lambda value: type(value) is str and value in args
    if origin is tuple:
        return _tuple_check(args)
    if origin in (dict, Mapping, types.MappingProxyType):
        key, item = map(check_of, args)
        return lambda value: (
            isinstance(value, Mapping) and all(key(k) and item(v) for k, v in value.items())
        )
    if hint is None or hint is type(None):
        return lambda value: value is None
    return _plain_check(hint)


def _union_check(args: tuple[Any, ...]) -> Check:
    options = [check_of(arg) for arg in args]

    def check(value: object) -> bool:
        for fits in options:  # noqa: SIM110  # a generator would take twice as long
            if fits(value):
                return True
        return False

    return check


def _tuple_check(args: tuple[Any, ...]) -> Check:
    if len(args) == 2 and args[1] is ...:
        each = check_of(args[0])
        return lambda value: type(value) is tuple and all(map(each, value))
    checks = [check_of(arg) for arg in args]
    return lambda value: (
        type(value) is tuple
        and len(value) == len(checks)
        and all(fits(part) for fits, part in zip(checks, value, strict=True))
    )


def _plain_check(hint: Any) -> Check:
    if hint in (bool, str):
        return lambda value: type(value) is hint
    if hint is int:
        return lambda value: type(value) is int and -LARGEST < value < LARGEST
    if hint is float:
        return lambda value: type(value) is float and not math.isnan(value)
    if isinstance(hint, type) and issubclass(hint, Enum | sympy.Basic):
        return lambda value: isinstance(value, hint)
    if dataclasses.is_dataclass(hint):
        return lambda value: type(value) is hint and not misfits(value)
    raise TypeError(f"no check for fields annotated {hint!r}")
