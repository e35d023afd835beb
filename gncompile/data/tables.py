"""Tables from files: ``.csv`` by the standard library, Parquet and Arrow's by pyarrow, all into one record.

Nothing is taken for what it only looks like: a column that holds numbers and other texts, or dates, is
refused when it is asked for, until ``categories`` says that its values are names.
"""

from __future__ import annotations

import array
import csv
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..base.untrusted import shown
from ..errors import DataError, expected_got
from .table import (
    CELL_OF_TEXT,
    MISSING,
    Array,
    Table,
    check_names,
    is_number,
    look_alike,
    no_number,
    require_room,
)

LONGEST_LINE = 1 << 24
"""Characters of one line of a table."""
_BOOLEANS = {"true": 1.0, "false": 0.0}


def read_table(path: Path, texts: Collection[str] = ()) -> Table:
    """The columns of a table; :class:`DataError`, by line or row and column, for what is none.

    Columns are numbers where all their cells are, booleans counting as 0 and 1, and else texts. Those that
    ``texts`` names are texts whatever they look like. Rows are in the file's order.
    """
    if not path.stat().st_size:
        raise DataError("cannot read the data file: it is empty", where=str(path))
    try:
        table = TABLES[path.suffix](path, frozenset(texts))
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file makes pyarrow raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"cannot read the data file: {said}", where=str(path)) from error
    if not len(table):
        raise DataError("the table is empty: it has no rows", where=table.where)
    return table


def _read_arrow(path: Path, texts: Collection[str]) -> Table:
    from .arrow_tables import read_arrow  # pyarrow is an extra

    return read_arrow(path, texts)


# --- Tables of text ----------------------------------------------------------------------------------


def read_csv(path: Path, texts: Collection[str] = ()) -> Table:
    """A table of one header line and rows of cells, divided by commas; texts are read in a second pass."""
    require_room(8 * _cells(path), path)
    with _rows_of(path) as (rows, header):
        numbers, lines, odd = _numbers(rows, header, path)
    named = [name for name in header if name in texts or name in odd]
    columns = {name: numbers[:, i] for i, name in enumerate(header) if name not in named}
    refused: dict[str, DataError] = {}
    if named:
        require_room((8 + CELL_OF_TEXT) * len(lines) * len(named) + path.stat().st_size, path)
    for name, values in _texts(path, named, len(lines)).items():
        levels = {cell: None for cell in values if cell is not None}
        found: Array | DataError = values
        if name not in texts:
            found = _judged(values, levels, odd[name])
        if isinstance(found, DataError):
            refused[name] = found
        else:
            columns[name] = found
    ordered = {name: columns[name] for name in header if name in columns}
    return Table(ordered, str(path), lines, "line", refused)


def _judged(values: Array, levels: Collection[str], odd: tuple[str, str]) -> Array | DataError:
    """A column whose cells are not all numbers: texts, flags as numbers, or the error that it is neither."""
    if all(level.lower() in _BOOLEANS for level in levels):
        flags = [np.nan if cell is None else _BOOLEANS[cell.lower()] for cell in values]
        return np.array(flags, np.float64)
    if any(map(is_number, levels)) or look_alike(levels):
        return no_number(*odd)
    return values


Odd = dict[str, tuple[str, str]]
"""By column, the first cell that is no number, and where it is."""


def _numbers(rows: Any, header: list[str], path: Path) -> tuple[Array, Array, Odd]:
    """Rows below the header ``[N, columns]``, NaN for all but numbers; lines they end on; what is odd."""
    numbers, lines = array.array("d"), array.array("q")
    odd: dict[int, tuple[str, str]] = {}
    for row in _whole(rows, header, path):
        for column in odd:
            row[column] = "nan"
        try:
            cells = [*map(float, row)]
        except ValueError:
            cells = []
        if not cells or "_" in "".join(row):  # Python's 1_000 is no number in a table
            for column, cell in enumerate(row):
                if is_number(cell):
                    continue
                if cell.strip().lower() not in MISSING:
                    place = f"line {rows.line_num}, column {shown(header[column])} of {path}"
                    odd[column] = cell.strip(), place
                row[column] = "nan"
            cells = [*map(float, row)]
        numbers.extend(cells)
        lines.append(rows.line_num)
    found = np.frombuffer(numbers, np.float64).reshape(-1, len(header))
    return found, np.frombuffer(lines, np.int64), {header[i]: what for i, what in odd.items()}


def _texts(path: Path, names: list[str], count: int) -> dict[str, Array]:
    """These columns as texts, None where a cell is empty; equal texts are one object."""
    found = {name: np.full(count, None, object) for name in names}
    if not names:
        return found
    known: dict[str, str] = {}
    with _rows_of(path) as (rows, header):
        places = [(found[name], header.index(name)) for name in names]
        for number, row in enumerate(_whole(rows, header, path)):
            for column, place in places:
                cell = row[place].strip()
                if cell.lower() not in MISSING:
                    column[number] = known.setdefault(cell, cell)
    return found


@contextmanager
def _rows_of(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """The rows below the header, and the names in it."""
    where = f"the header of {path}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(_lines(file), strict=True)
            header = [name.strip() for name in next(rows, [])]
            if header and all(map(is_number, header)):
                raise DataError(
                    "the first line holds numbers, no names of columns",
                    where=where,
                    instead="begin the file with a header",
                )
            check_names(header, where)
            mark = next((m for m in ";\t|" if m in header[0]), None) if len(header) == 1 else None
            if mark:
                raise DataError(
                    f"the cells are divided by {mark!r}",
                    where=where,
                    instead="save the table with commas between cells, and points in numbers: "
                    f"pandas.read_csv(name, sep={mark!r}, decimal=',').to_csv(name, index=False)",
                )
            yield rows, header
    except UnicodeDecodeError as error:
        raise DataError(
            f"cannot read the data file: it is not text in UTF-8: {error.reason}",
            where=f"byte {error.start} of {path}",
            instead="save it as CSV in UTF-8",
        ) from None
    except csv.Error as error:
        raise DataError(
            f"cannot read the data file: {error}",
            where=f"line {rows.line_num} of {path}",
            instead="write one line a sample, cells divided by commas",
        ) from None


def _whole(rows: Any, header: list[str], path: Path) -> Iterator[list[str]]:
    """The rows that are not blank, each as long as the header."""
    for row in rows:
        if row and len(row) != len(header):
            raise DataError(
                "cannot read the data file: a line is not as long as the header\n"
                + expected_got(f"{len(header)} cells", len(row)),
                where=f"line {rows.line_num} of {path}",
            )
        if row:
            yield row


def _lines(file: Any) -> Iterator[str]:
    """Lines of a bounded length."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise csv.Error(f"a line of more than {LONGEST_LINE} characters")
        yield line


def _cells(path: Path) -> int:
    """Cells of a table at most, counted without reading it into memory."""
    with path.open("rb") as file:
        return sum(c.count(b",") + c.count(b"\n") + c.count(b"\r") for c in _chunks(file)) + 1


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(1 << 20):
        yield chunk


TABLES: Mapping[str, Callable[[Path, Collection[str]], Table]] = {
    ".csv": read_csv,
    ".parquet": _read_arrow,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
