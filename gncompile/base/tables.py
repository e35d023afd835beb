"""Plain text for people: aligned tables and readable numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Aligned columns with a rule below the first row."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{cell:>{width}}" if k in right else f"{cell:<{width}}"
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


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
