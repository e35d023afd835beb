"""What a lower room needs of a higher one, by name: it is looked up when somebody first asks for it.

The package hands these down when it is imported, which is before any of its modules, and loads nothing by
that: the ``backends`` of expressions, with which a declared function is checked as emitted, and
``compile_into``, which makes a trainer anew to resume or to copy one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Name = Literal["backends", "compile_into"]
_found: dict[str, Callable[[], Any]] = {}


def hand_down(name: Name, find: Callable[[], Any]) -> None:
    """Say how the thing of this name is found."""
    _found[name] = find


def handed_down(name: Name) -> Any:
    """The thing of this name."""
    return _found[name]()
