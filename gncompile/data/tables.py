"""Named columns of numbers or texts, whatever file they come from; ``read_table`` of a ``.csv`` or Arrow's files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..base.untrusted import shown
from ..errors import DataError, nearest

Array = np.ndarray[Any, np.dtype[Any]]

NAMES_SHOWN = 20
CELLS_SHOWN = 5
"""Of those that an error is about."""


@dataclass(frozen=True)
class Table:
    """Columns of one length, by name: numbers, NaN where missing, or texts (objects), None where missing.

    The columns of an archive are its arrays ``[N, …]``. ``refused`` are columns that hold neither, each with the
    error that asking for it raises. ``rows: int64 [N]`` says where each row stands in the file ``where``: the
    ``row_word`` "line" of a CSV file, a "row" counted from 1, or an "index" counted from 0.
    """

    columns: Mapping[str, Array]
    where: str
    rows: Array
    row_word: Literal["line", "row", "index"] = "row"
    refused: Mapping[str, DataError] = field(default_factory=dict)

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
                instead=f"use the file's columns: {listed[:500] or 'none'}",
            )
        return self.columns[name]

    def numbers(self, name: str, asked: str = "the network's inputs") -> Array:
        """A column of numbers ``[N, …]``; :class:`DataError` where it holds texts."""
        values = self.column(name, asked)
        if values.dtype.kind != "O":
            return values
        row = next((i for i, cell in enumerate(values) if cell is not None and not is_number(cell)), 0)
        raise DataError(
            f"cannot read the data file: {shown(str(values[row]), 40)} is not a number",
            where=self.place(row, name),
            instead="leave the sample or the column out, or write a number there",
        )

    def levels(self, name: str, asked: str = "the network's inputs") -> tuple[list[str], Array]:
        """The distinct values of a column, as texts, and for each row the place of its own there; -1: missing."""
        values = self.column(name, asked)
        if values.dtype.kind != "O":
            flat = values.reshape(len(values), -1)[:, 0] if values.size else values.reshape(-1)
            distinct, codes = np.unique(flat, return_inverse=True)
            there = np.isfinite(distinct)
            codes = np.where(there[codes], codes, -1) if len(distinct) else codes
            return [number_name(each) for each in distinct[there].tolist()], codes
        found: dict[str, int] = {}
        codes = np.empty(len(values), np.int64)
        for row, cell in enumerate(values):
            codes[row] = -1 if cell is None else found.setdefault(cell, len(found))
        return list(found), codes

    def take(self, order: Array) -> Table:
        """The rows ``order``, which remember where they stood."""
        columns = {name: values[order] for name, values in self.columns.items()}
        return replace(self, columns=columns, rows=self.rows[order])

    def place(self, row: int, name: str, feature: int = 0) -> str:
        """Where a cell is, for an error: of an archive's array, the number of the feature too."""
        if self.row_word == "index":
            column = f", column {feature}" if self.columns[name].ndim > 1 else ""
            return f"row {self.rows[row]}{column} of {name}, counted from 0, in {self.where}"
        return f"{self.row_word} {self.rows[row]}, column {shown(name)} of {self.where}"

    def places(self, cells: Iterable[tuple[int, str]]) -> str:
        """Where the first of some cells are."""
        listed = [*cells]
        first = [f"{self.row_word} {self.rows[row]}, column {shown(name)}" for row, name in listed]
        more = f"; and {len(listed) - CELLS_SHOWN} more" if len(listed) > CELLS_SHOWN else ""
        return f"{'; '.join(first[:CELLS_SHOWN])}{more} of {self.where}"


def is_number(text: str) -> bool:
    """Whether a cell is a number; Python's ``1_000`` is none in a table."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def number_name(value: float) -> str:
    """A number as the name of a category or class: ``3`` for 3.0."""
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)
