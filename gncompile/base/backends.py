"""What runs an expression as each backend would: emitters are above the checks that ask for it.

The package hands the way to them down when it is imported, so that whoever declares a function has it
checked as emitted, and nothing is loaded before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InternalError

Backends = Callable[[], Mapping[str, Callable[..., Any]]]
_found: list[Backends] = []


def hand_down(backends: Backends) -> None:
    """Say how the backends are found."""
    _found[:] = [backends]


def expression_backends() -> Mapping[str, Callable[..., Any]]:
    """Functions of an expression and the tensors of its symbols, by the name of the backend."""
    if not _found:
        raise InternalError("the package was not imported as a whole: no backend is known")
    return _found[0]()
