"""Triton's interpreter without what it repeats, and what it computes for nothing: less than half its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@cache
def _languages(fn: Callable[..., Any]) -> frozenset[str]:
    """The modules of the language that a function's own module holds."""
    values = list(fn.__globals__.values())
    return frozenset(lang.__name__ for lang in (tl, tl.core) if any(v is lang for v in values))


def patch_once() -> None:
    """Patch each module of the language once for a kernel, not for every function that it calls.

    What a patch changes is looked up for the first kernel that holds these modules, and put back for others.
    """
    patch = interpreter._patch_lang
    patched: set[str] = set()
    changes: dict[frozenset[str], list[tuple[object, str, object]]] = {}

    class Scope:
        """What the kernel's own patches are undone by; those of the functions it calls go with them."""

        def __init__(self, scope: Any) -> None:
            self.scope = scope

        def restore(self) -> None:
            patched.clear()
            self.scope.restore()

    def patch_new(fn: Callable[..., Any]) -> Any:
        found = _languages(fn)
        if found and found <= patched:
            return interpreter._LangPatchScope()  # with nothing to undo
        if not patched and found in changes:
            inner = interpreter._LangPatchScope()
            for change in changes[found]:
                inner.set_attr(*change)
        else:
            inner = patch(fn)
            if not patched:
                changes[found] = [(on, name, getattr(on, name)) for on, name, _ in inner._changes]
        patched.update(found)
        return Scope(inner)

    interpreter._patch_lang = patch_new


def leave_out_unread_bounds() -> None:
    """Compute no bounds of whole numbers: every addition makes them for an assertion that is switched off."""
    builder = interpreter.interpreter_builder
    assert not builder.options.debug  # where they would be asserted
    builder.options = replace(builder.options, sanitize_overflow=False)


def look_up_dtypes() -> None:
    """NumPy's dtypes from a table, which the interpreter writes anew for every one that it looks up."""
    find = interpreter._get_np_dtype
    found: dict[str, Any] = {}

    def look_up(of: Any) -> Any:
        scalar = of.scalar
        if scalar.name not in found:
            found[scalar.name] = find(scalar)
        return found[scalar.name]

    interpreter._get_np_dtype = look_up
