"""Plain text for people: aligned tables and readable numbers."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest

WIDE = 80
"""Characters of a line where nothing tells how many there are: in a pipe, a file, a log."""
NARROW, NAMES = 16, 9
"""No column is wrapped to fewer characters; one of names, which stand above their rows, has a few less."""
GAP = "  "
STACKED = "    "
"""What stands before the columns of a further line."""

Rows = Sequence[Sequence[str]]


def line_width() -> int:
    """Characters of a line: ``COLUMNS`` if that is set, else those of the terminal, else :data:`WIDE`."""
    return max(NARROW, shutil.get_terminal_size((WIDE, 24)).columns)


def table(rows: Rows, right: Collection[int] = (), width: int | None = None) -> str:
    """:func:`aligned` columns with a rule below the first row, whose cells are their headings."""
    layout = _Layout.of(rows, right, width)
    rule = GAP.join("-" * size for size in layout.lines[0].sizes)
    return "\n".join([*layout.written(rows[0]), rule, *layout.all_written(rows[1:])])


def aligned(rows: Rows, right: Collection[int] = (), width: int | None = None) -> str:
    """Rows in columns, those in ``right`` aligned to the right, in lines of ``width`` characters.

    Where they are too wide, columns of text are wrapped between words, the widest first and none to fewer
    than :data:`NARROW` characters; a long word of the first column, a name, stands above the rest of its row.
    What is too wide even so is stacked: each row's last columns go to a second line. No word is broken, so
    that names can be searched for and copied; rich's tables fold them at any letter and are not used here.
    ``width`` is :func:`line_width` if not given.

    >>> print(aligned([["a.long.name", "what it is and does", "1"]], right=(2,), width=30))
    a.long.name  what it is and  1
                 does
    """
    return "\n".join(_Layout.of(rows, right, width).all_written(rows))


@dataclass(frozen=True)
class _Line:
    """Columns that stand in one line: their positions in a row, and their sizes in characters."""

    columns: Sequence[int]
    sizes: Sequence[int]
    right: Collection[int]

    def written(self, row: Sequence[str]) -> Iterator[str]:
        """The lines of a row's cells in these columns."""
        parts = [
            wrapped(row[column], size)
            for column, size in zip(self.columns, self.sizes, strict=True)
        ]
        if len(parts[0][0]) > self.sizes[0]:
            yield parts[0].pop(0)
        for cells in zip_longest(*parts, fillvalue=""):
            placed = zip(self.columns, cells, self.sizes, strict=True)
            yield GAP.join(
                f"{c:>{n}}" if k in self.right else f"{c:<{n}}" for k, c, n in placed
            ).rstrip()


@dataclass(frozen=True)
class _Layout:
    """How the columns of a table share a width: one line of a row after the other."""

    lines: Sequence[_Line]

    @classmethod
    def of(cls, rows: Rows, right: Collection[int], width: int | None) -> _Layout:
        room = line_width() if width is None else width
        columns = list(zip(*rows, strict=True))
        wide = [max(map(len, column)) for column in columns]
        least = [
            size if k in right else min(size, _least(column) if k else _least_of_first(column))
            for k, (column, size) in enumerate(zip(columns, wide, strict=True))
        ]
        taken, lines = 0, []
        while taken < len(columns):
            inside = room - (len(STACKED) if taken else 0)
            ends = accumulate(size + len(GAP) for size in least[taken:])
            fitting = max(1, sum(end - len(GAP) <= inside for end in ends))
            chosen = range(taken, taken + fitting)
            sizes = _shrunk([wide[k] for k in chosen], [least[k] for k in chosen], inside)
            lines.append(_Line(chosen, sizes, right))
            taken += fitting
        return cls(lines)

    def written(self, row: Sequence[str]) -> Iterator[str]:
        """The lines of a row; a further line of empty cells is left out."""
        for line in self.lines:
            before = STACKED if line is not self.lines[0] else ""
            yield from (before + text for text in line.written(row) if text or not before)

    def all_written(self, rows: Rows) -> Iterator[str]:
        for row in rows:
            yield from self.written(row)


def _least(cells: Sequence[str]) -> int:
    """What a column must have: its longest word."""
    return max(NARROW, *(len(word) for cell in cells for word in cell.split()), 0)


def _least_of_first(cells: Sequence[str]) -> int:
    return NARROW if any(" " in cell for cell in cells) else NAMES


def _shrunk(sizes: list[int], least: Sequence[int], room: int) -> list[int]:
    """The sizes of columns in ``room`` characters, taken from the widest that can give."""
    while sum(sizes) + len(GAP) * (len(sizes) - 1) > room:
        able = [k for k, size in enumerate(sizes) if size > least[k]]
        if not able:
            break
        sizes[max(able, key=lambda k: sizes[k])] -= 1
    return sizes


def wrapped(written: str, width: int | None = None, further: str = "") -> list[str]:
    """Lines of at most ``width`` characters but for longer words; ``further`` begins all after the first."""
    if width is not None and len(written) <= width:
        return [written]
    lines = textwrap.wrap(
        written,
        width or line_width(),
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [""]


def shortened(written: str, width: int) -> str:
    """The text, or its beginning."""
    return written if len(written) <= width else f"{written[: width - 1]}…"


def listed(names: Sequence[str], most: int) -> str:
    """All names, or ``most`` of them and how many there are besides."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


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
