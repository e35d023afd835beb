"""Named columns of numbers or texts, whatever file they come from."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..base.memory_budget import require_memory
from ..base.untrusted import shown
from ..errors import DataError, nearest

Array = np.ndarray[Any, np.dtype[Any]]

COPIES = 4
"""Times a column is in memory at most while it is read, checked, divided and converted."""
EXACT = 2**53
"""Integers that float64 holds, all of them."""
CELL_OF_TEXT = 72
"""Bytes of a text in memory beside its characters."""
NAMES_SHOWN = 20
CELLS_SHOWN = 5
"""Of those that an error is about."""


@dataclass(frozen=True)
class Table:
    """Columns of one length, by name: numbers, NaN where missing, or texts (objects), None where missing.

    The columns of an archive are its arrays ``[N, …]``. ``refused`` are columns that hold neither, each
    with the error that asking for it raises. ``rows: int64 [N]`` says where each row stands in the file
    ``where``: the ``row_word`` "line" of a CSV file, a "row" counted from 1, or an "index" counted from 0.
    In an archive the names of the arrays begin with ``prefix``.
    """

    columns: Mapping[str, Array]
    where: str
    rows: Array
    row_word: Literal["line", "row", "index"] = "row"
    refused: Mapping[str, DataError] = field(default_factory=dict)
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """Of all columns, in the file's order but for those refused, which are last."""
        return [*self.columns, *self.refused]

    def is_text(self, name: str) -> bool:
        """Whether the column ``name`` holds texts."""
        return name in self.columns and self.columns[name].dtype.kind == "O"

    def column(self, name: str, asked: str = "the network's inputs") -> Array:
        """The column ``name``; :class:`DataError` where there is none, or none that can be read."""
        if name in self.refused:
            raise self.refused[name]
        if name not in self.columns:
            listed = ", ".join(shown(each, 40)[1:-1] for each in self.names[:NAMES_SHOWN])
            raise DataError(
                f"no column {shown(name)}. {nearest(name, self.names)}".rstrip(),
                where=f"{asked}, and the columns of {self.where}",
                instead=f"add it, or use the file's columns: {listed[:500] or 'none'}",
            )
        return self.columns[name]

    def numbers(self, name: str, asked: str = "the network's inputs") -> Array:
        """A column of numbers ``[N, …]``, NaN where missing; :class:`DataError` for texts and infinity."""
        values = self.column(name, asked)
        if values.dtype.kind == "O":
            cells = values.reshape(len(values), -1)[:, 0]
            odd = (i for i, cell in enumerate(cells) if cell is not None and not is_number(cell))
            row = next(odd, 0)
            raise no_number(str(cells[row]), self.place(row, name))
        if values.dtype.kind == "f" and np.isinf(values).any():
            row, feature = first_cell(np.isinf(values))
            raise DataError(
                f"samples contain NaN or infinite values: {values.reshape(len(values), -1)[row, feature]}",
                where=self.place(row, name, feature),
                instead="leave the sample out, or put a number there",
            )
        return values

    def levels(self, name: str, asked: str = "the network's inputs") -> tuple[list[str], Array]:
        """The distinct values of a column, as texts, and the place of each row's there, -1 if missing."""
        values = self.column(name, asked)
        values = values.reshape(len(self), -1)[:, 0]
        if values.dtype.kind != "O":
            distinct, codes = np.unique(values, return_inverse=True)
            there = np.isfinite(distinct)
            codes = np.where(there[codes], codes, -1) if len(distinct) else codes
            return [number_name(each) for each in distinct[there].tolist()], codes
        found: dict[str, int] = {}
        codes = np.empty(len(values), np.int64)
        for row, cell in enumerate(values):
            codes[row] = -1 if cell is None else found.setdefault(cell, len(found))
        return list(found), codes

    def empty(self, name: str) -> Array:
        """Which cells of a column are missing, ``[N, …]``."""
        values = self.column(name)
        if values.dtype.kind != "O":
            return np.isnan(values)
        return np.array([cell is None for cell in values.flat], bool).reshape(values.shape)

    def take(self, order: Array) -> Table:
        """The rows ``order``, which remember where they stood."""
        columns = {name: values[order] for name, values in self.columns.items()}
        return replace(self, columns=columns, rows=self.rows[order])

    def place(self, row: int, name: str, feature: int = 0) -> str:
        """Where a cell is, for an error: of an archive's array, the number of the feature too."""
        if self.row_word == "index":
            array = f"{self.prefix}{name}, counted from 0, in {self.where}"
            return f"row {self.rows[row]}, column {feature} of {array}"
        return f"{self.row_word} {self.rows[row]}, column {shown(name)} of {self.where}"

    def require_filled(self, missing: Sequence[tuple[str, Array]], instead: str) -> None:
        """Raise :class:`DataError`, listing the first, for cells that these masks ``[N, …]`` show."""
        masks = [(name, mask.reshape(len(self), -1)) for name, mask in missing if mask.any()]
        if not masks:
            return
        cells = sorted(
            (int(self.rows[row]), int(row), name, int(feature))
            for name, mask in masks
            for row, feature in np.argwhere(mask)[:CELLS_SHOWN]
        )
        count = sum(int(mask.sum()) for _, mask in masks)
        found = "a cell is empty" if count == 1 else f"{count} cells are empty"
        if self.row_word == "index":  # archives have no empty cells
            found = "samples contain NaN or infinite values: nan"
        places = [self.place(row, name, feature) for _, row, name, feature in cells[:CELLS_SHOWN]]
        more = [f"and {count - len(places)} more"] if count > len(places) else []
        raise DataError(
            f"cannot read the data file: {found}",
            where="\n              ".join([*places, *more]),
            instead=instead,
        )


def first_cell(mask: Array) -> tuple[int, int]:
    """Row and feature of the first true element of a mask ``[N, …]``."""
    row, feature = np.argwhere(mask.reshape(len(mask), -1))[0]
    return int(row), int(feature)


MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "null"))
"""Cells that stand for nothing, in any case of letters."""
_LIKE_A_NUMBER = re.compile(r"(?:[\d\s.,:;/'_%+\-$€£]|(?<=\d)T(?=\d)|(?<=\d)Z$)+")


def is_number(text: str) -> bool:
    """Whether a cell is a finite number; Python's ``1_000`` is none in a table."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def number_name(value: float) -> str:
    """A number as the name of a category or class: ``3`` for 3.0."""
    whole = isinstance(value, int) or value.is_integer()
    return str(int(value)) if whole else repr(value)


def plain_name(text: str) -> str:
    """A text that is a number as :func:`number_name` has it, ``1`` for ``1.0``; another as it is."""
    return number_name(float(text)) if is_number(text) else text


def look_alike(levels: Collection[str]) -> str | None:
    """One of the texts of a column if all are dates, amounts or ranges: no numbers as they stand."""
    odd = [x for x in levels if not is_number(x)]
    alike = all(_LIKE_A_NUMBER.fullmatch(x) and any(c.isdigit() for c in x) for x in odd)
    return odd[0] if odd and alike else None


def no_number(text: str, where: str) -> DataError:
    """The error for a cell that should hold a number."""
    found = (
        "'_' is in no number"
        if text.replace("_", "").isdigit()
        else f"{shown(text, 40)} is not a number"
    )
    return DataError(
        f"cannot read the data file: {found}",
        where=where,
        instead="write a number there, leave the sample out, or name the column in ignore of [data]; "
        'if its values are names, name it in categories (of a target write target = "label")',
    )


def check_names(names: Sequence[str], where: str) -> None:
    """Raise :class:`DataError` unless there are columns whose names differ."""
    if not names:
        raise DataError("the table has no columns", where=where)
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(
                f"column {number} has no name",
                where=where,
                instead="name it, or leave the column out (as an index)",
            )
        if name in seen:
            found = f"columns {seen[name]} and {number} are both called {shown(name)}"
            raise DataError(found, where=where, instead="rename one")
        seen[name] = number


def require_room(size: int, path: Path, what: str = "the table") -> None:
    """Raise :class:`DataError` unless ``size`` bytes, and their copies on the way to tensors, can be had."""
    require_memory(
        COPIES * size,
        f"{what} and its copies while it is read",
        where=str(path),
        instead="give fewer samples, or use a machine with more memory",
        error=DataError,
    )
