"""Arrays of a user's ``.npz``, ``.safetensors`` or ``.csv`` file, with the numbers that are in it.

Nothing is unpickled, and only the arrays that are asked for are read. Their declared sizes are held against
the file and the memory first: two megabytes of an archive can say that they are two gigabytes.
"""

from __future__ import annotations

import array
import csv
import math
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..base.memory_budget import require_memory
from ..base.untrusted import shown
from ..errors import DataError, expected_got, nearest

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]

COPIES = 4
"""Times an array is in memory at most while it is read, checked, divided and converted."""
LONGEST_LINE = 1 << 24
"""Characters of one line of a table."""
NAMES_SHOWN = 20

FORMAT = (
    "store numbers as arrays x [N, ...] and y [N] or [N, K], optionally validation_x and validation_y "
    "(.npz, .safetensors), or as a table with one header line (.csv)"
)


class Missing(Exception):
    """An array that the file lacks; the text lists what it has."""


# --- Archives of arrays -----------------------------------------------------------------------------


def read_npz(path: Path, wanted: Collection[str]) -> Arrays:
    """The arrays of numpy's archive ``path`` that are wanted and there."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        found: Arrays = {}
        for name in wanted:
            info = members.get(f"{name}.npy")
            if info is None:
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"the array {name!r} is packed in a way numpy does not use",
                    where=str(path),
                    instead="write it with numpy.savez",
                )
            with archive.open(info) as stream:
                _check_header(name, stream, info.file_size, path)
            with archive.open(info) as stream:
                values = np.lib.format.read_array(stream, allow_pickle=False)
            if (
                values.dtype.itemsize > 8
            ):  # of more digits and a wider range than anything computes in
                with np.errstate(over="ignore"):  # what is infinite then is refused with its place
                    values = values.astype(np.float64)
            found[name] = values
        _require_some(found, [n.removesuffix(".npy") for n in members], path)
    return found


def _check_header(name: str, stream: Any, size: int, path: Path) -> None:
    """The shape and type that a ``.npy`` member declares, against its own size and the memory."""
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise DataError(f"the array {name!r} has format {version}", where=str(path))
    shape, _, dtype = readers[version](stream)
    require_numbers(name, dtype, path)
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or declared != size - stream.tell():
        raise DataError(
            f"the array {name!r} is not as long as it declares\n"
            + expected_got(f"{declared} bytes for {list(shape)}", size - stream.tell()),
            where=str(path),
        )
    _require_memory(declared, name, path)


def read_safetensors(path: Path, wanted: Collection[str]) -> Arrays:
    """The arrays of a safetensors file that are wanted and there."""
    from safetensors import safe_open

    found: Arrays = {}
    with safe_open(path, framework="pt") as file:  # checks declared sizes against the file's
        names = list(file.keys())
        for name in wanted:
            if name not in names:
                continue
            declared = file.get_slice(name)
            _require_memory(8 * math.prod(declared.get_shape()), name, path)
            if declared.get_dtype() == "BF16":  # which numpy does not have
                found[name] = file.get_tensor(name).float().numpy()
            elif declared.get_dtype().startswith(("F", "I", "U", "BOOL")):
                found[name] = file.get_tensor(name).numpy()
            else:
                raise _no_numbers(name, declared.get_dtype(), path)
        _require_some(found, names, path)
    return found


def require_numbers(name: str, dtype: np.dtype[Any], path: Path) -> None:
    """Raise unless the array's elements are real numbers."""
    if dtype.hasobject:
        raise DataError(
            f"Object arrays cannot be loaded: {name!r} holds pickled Python objects",
            where=str(path),
            instead=FORMAT,
        )
    if dtype.kind not in "biuf":
        raise _no_numbers(name, str(dtype), path)


def _no_numbers(name: str, kind: str, path: Path) -> DataError:
    found = f"the array {name!r} holds no real numbers but {shown(kind)[1:-1]}"
    return DataError(found, where=str(path), instead=FORMAT)


def _require_memory(size: int, name: str, path: Path) -> None:
    require_memory(
        COPIES * size,
        f"the array {name!r} and its copies while it is read",
        where=str(path),
        instead="give fewer samples, or use a machine with more memory",
        error=DataError,
    )


def _require_some(found: Arrays, names: list[str], path: Path) -> None:
    if not found:
        more = ["…"] if len(names) > NAMES_SHOWN else []
        listed = ", ".join([*(shown(n, 40)[1:-1] for n in names[:NAMES_SHOWN]), *more]) or "none"
        raise Missing(listed)


# --- Tables -----------------------------------------------------------------------------------------


def read_csv(path: Path, targets: Collection[str], autoencoder: bool) -> tuple[Arrays, list[str]]:
    """Columns ``x`` and ``y`` of a table with a header, as float64; and the names of all columns.

    Raises :class:`DataError`, with line and column, for whatever is not a rectangle of numbers below one
    line of names that differ.
    """
    _require_memory(8 * _cells(path), "x", path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(_lines(file, path), strict=True)
            header = [name.strip() for name in next(rows, [])]
            _check_header_line(header, targets, autoencoder, path)
            table = _numbers(rows, header, path)
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
            instead="write one line a sample, numbers divided by commas",
        ) from None
    y = [header.index(name) for name in targets]
    x = [column for column in range(len(header)) if column not in y]
    return {"x": table[:, x], "y": table[:, y]}, header


def _cells(path: Path) -> int:
    """Cells of a table at most, counted without reading it into memory."""
    with path.open("rb") as file:
        return sum(c.count(b",") + c.count(b"\n") + c.count(b"\r") for c in _chunks(file)) + 1


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(1 << 20):
        yield chunk


def _lines(file: Any, path: Path) -> Iterator[str]:
    """Lines of a bounded length; Python's ``1_000`` is no number in a table."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise csv.Error(f"a line of more than {LONGEST_LINE} characters")
        if number > 1 and "_" in line:
            raise DataError(
                "cannot read the data file: '_' is in no number",
                where=f"line {number} of {path}",
                instead=FORMAT,
            )
        yield line


def _check_header_line(
    header: list[str], targets: Collection[str], autoencoder: bool, path: Path
) -> None:
    """Raise unless the names differ, and the targets are among them once."""

    def refuse(found: str, instead: str) -> None:
        raise DataError(found, where=f"the header of {path}", instead=instead)

    if not header:
        refuse("the file is empty", FORMAT)
    if all(map(_is_number, header)):
        refuse("the first line holds numbers, no names of columns", "begin the file with a header")
    for number, name in enumerate(header, start=1):
        if not name:
            refuse(f"column {number} has no name", "name it, or leave the column out (as an index)")
        if header.index(name) != number - 1:
            first = header.index(name) + 1
            refuse(f"columns {first} and {number} are both called {shown(name)}", "rename one")
    for name in targets:
        if name not in header:
            columns = ", ".join(header[:NAMES_SHOWN])
            raise DataError(
                f"no column {name!r}. {nearest(name, header)}".rstrip(),
                where=f"targets in [data], and the header of {path}",
                instead=f"use the file's columns: {columns[:500]}",
            )
    if len(set(targets)) < len(targets):
        refuse("targets in [data] names a column twice", "name each target once")
    if not autoencoder and not targets:
        raise DataError(
            "a CSV file needs its target columns named",
            where=str(path),
            instead='write targets = ["column"] in [data], or target = "input"',
        )
    if len(targets) == len(header):
        refuse("all columns are targets, none is left as an input", "name fewer in targets")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(rows: Any, header: list[str], path: Path) -> Array:
    """The rows below the header as ``[N, columns]``."""
    numbers = array.array("d")
    for row in rows:
        if not row:  # a blank line
            continue
        if len(row) != len(header):
            raise DataError(
                "cannot read the data file: a line is not as long as the header\n"
                + expected_got(f"{len(header)} cells", len(row)),
                where=f"line {rows.line_num} of {path}",
            )
        try:
            numbers.extend(map(float, row))
        except ValueError:
            column = next(i for i, cell in enumerate(row) if not _is_number(cell))
            cell = row[column]
            found = f"{shown(cell, 40)} is not a number" if cell.strip() else "a cell is empty"
            raise DataError(
                f"cannot read the data file: {found}",
                where=f"line {rows.line_num}, column {shown(header[column])} of {path}",
                instead="leave the sample or the column out, or write a number there",
            ) from None
    return np.frombuffer(numbers, np.float64).reshape(-1, len(header))


ARCHIVES: Mapping[str, Callable[[Path, Collection[str]], Arrays]] = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
}
