"""Derivatives as other notations spell them, for hints in error texts."""

from __future__ import annotations

import re
from collections.abc import Collection

LONGEST = 200
"""Characters of a name that is looked at."""


def derivative_meant(
    name: str, outputs: Collection[str], inputs: Collection[str]
) -> tuple[str, ...]:
    """Output and inputs that a name like ``u_xy``, ``u_x_y``, ``du_dt`` or ``d2u_dx2`` means; else nothing.

    >>> derivative_meant("d3u_dx2dt", "u", ("x", "t"))
    ('u', 'x', 'x', 't')
    """
    head = re.match(rf"(?:d\d*)?({_any(outputs)})", name)
    if head is None or len(name) > LONGEST:
        return ()
    by, at, part = [head[1]], head.end(), re.compile(rf"_*d?({_any(inputs)})(\d?)")
    while found := part.match(name, at):
        by += [found[1]] * int(found[2] or 1)
        at = found.end()
    return tuple(by) if at == len(name.rstrip("_")) and len(by) > 1 else ()


def _any(names: Collection[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
