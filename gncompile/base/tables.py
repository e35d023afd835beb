"""Plain text for people: aligned tables and readable numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

WIDE = 80
"""Characters of a line that a terminal shows."""
NARROW = 9
"""No column is broken to fewer characters."""


def table(
    rows: Sequence[Sequence[str]], right: Sequence[int] = (), broken: int | None = None
) -> str:
    """Aligned columns with a rule below the first row; where they are too wide, the cells of the column
    ``broken`` are broken into lines."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    if broken is not None:
        over = max(0, sum(widths) + 2 * (len(widths) - 1) - WIDE)
        widths[broken] = max(min(NARROW, widths[broken]), widths[broken] - over)

    def aligned(row: Sequence[str]) -> str:
        cells = enumerate(zip(row, widths, strict=True))
        return "  ".join(f"{c:>{w}}" if k in right else f"{c:<{w}}" for k, (c, w) in cells).rstrip()

    lines = [
        aligned(part)
        for row in rows
        for part in ([row] if broken is None else _parts(row, broken, widths[broken]))
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def _parts(row: Sequence[str], broken: int, width: int) -> Iterator[Sequence[str]]:
    """A row as several, with parts of its broken cell; a word that is too long stands above the others."""
    parts = wrapped(row[broken], width)
    if len(parts[0]) > width:
        yield ["" if k != broken else parts[0] for k in range(len(row))]
        parts = parts[1:] or [""]
    yield [*row[:broken], parts[0], *row[broken + 1 :]]
    for part in parts[1:]:
        yield ["" if k != broken else part for k in range(len(row))]


def wrapped(written: str, width: int = WIDE, further: str = "") -> list[str]:
    """Lines of at most ``width`` characters but for longer words; ``further`` begins all after the first."""
    lines = textwrap.wrap(
        written, width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )
    return lines or [""]


def shortened(written: str, width: int) -> str:
    """The text, or its beginning."""
    return written if len(written) <= width else f"{written[: width - 1]}…"


def indent(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def count(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}" + ("" if number == 1 else ending)


def engineering(number: float) -> str:
    """``1.23 G``: three digits and a decimal prefix."""
    steps = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]
    for size, prefix in steps:
        if number >= size:
            return f"{number / size:.3g} {prefix}".rstrip() if prefix else f"{number:.0f}"
    return "0"


def binary_size(number: float) -> str:
    """``1.23 MiB``."""
    steps = [(2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")]
    for size, unit in steps:
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"
