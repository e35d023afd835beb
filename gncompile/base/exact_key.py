"""Records as keys of a cache: two have one key only if no program could tell them apart.

``==`` is not enough. ``1 == 1.0 == True`` and ``0.0 == -0.0``, and two numbers of sympy are equal whatever
their precision, but a text that is made of them differs.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from functools import cached_property
from threading import Lock
from typing import Any, Generic, TypeVar

import sympy

T = TypeVar("T")


class NoKeyError(Exception):
    """Something in a record may change, or cannot be compared exactly: a tensor, an array, a function."""


def exact_key(value: Any) -> Hashable:
    """The key of a value made of dataclasses, tuples, lists, mappings, numbers, texts, types and expressions.

    The types and all fields count, and the order of mappings does. Raises :class:`NoKeyError` for others.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return kind, value
    if kind is float:
        return kind, value.hex()
    if isinstance(value, sympy.Basic):
        # the value for the classes of its functions, the text for precision
        return value, sympy.srepr(value)
    if isinstance(value, type | Enum):
        return kind, value
    if kind in (tuple, list):
        return kind, tuple(map(exact_key, value))
    if isinstance(value, Mapping):
        return kind, tuple((exact_key(key), exact_key(each)) for key, each in value.items())
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        more = getattr(value, "__dict__", {}).keys() - names
        if all(isinstance(getattr(kind, name, None), cached_property) for name in more):
            return kind, tuple(exact_key(getattr(value, name)) for name in names)
    raise NoKeyError(kind.__qualname__)


class Recent(Generic[T]):
    """The results of the last few different questions; for any number of threads."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._results: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result under ``key``, made if it is not there; if that raises, nothing is kept."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        made = make()
        with self._lock:
            self._results[key] = made
            while len(self._results) > self._kept:
                self._results.popitem(last=False)
        return made
