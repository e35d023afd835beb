"""Tables of Parquet and Arrow (Feather) files, read by pyarrow, an optional dependency.

Types say what a column is: all kinds of numbers become float64, booleans 0 and 1, strings and dictionaries
texts. What a file declares is held against the memory before it is unpacked, and a string that many rows
share is kept once.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ..base.untrusted import shown
from ..errors import DataError
from .table import (
    EXACT,
    MISSING,
    Array,
    Table,
    check_names,
    look_alike,
    no_number,
    number_name,
    require_room,
)

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def read_arrow(path: Path, texts: Collection[str] = ()) -> Table:
    """The columns of a ``.parquet``, ``.arrow`` or ``.feather`` file; other types are ``refused``."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{path.suffix} files are read by pyarrow, which is not installed",
            where=str(path),
            instead='pip install "gncompile[tables]", or save the table as .csv',
        ) from None
    read = _parquet if path.suffix == ".parquet" else _ipc
    found, named = read(path)
    require_room(8 * found.num_rows * found.num_columns, path)
    columns: dict[str, Array] = {}
    refused: dict[str, DataError] = {}
    for name, values in zip(found.column_names, found.columns, strict=True):
        if _PANDAS_INDEX.fullmatch(
            name
        ):  # the numbers of rows, say, which nobody means as an input
            continue
        try:
            columns[name] = _column(pyarrow, name, values, path, name in named or name in texts)
        except DataError as error:
            refused[name] = error
    return Table(columns, str(path), np.arange(1, found.num_rows + 1), "row", refused)


def _parquet(path: Path) -> tuple[Any, list[str]]:
    """The table, and the names of its columns that are declared as dictionaries, that is categories."""
    from pyarrow import parquet, types

    # Opened for its schema first, because all strings are to be read as dictionaries.
    with parquet.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        groups = range(file.metadata.num_row_groups)
        declared = sum(file.metadata.row_group(i).total_byte_size for i in groups)
        check_names(schema.names, str(path))
        require_room(max(8 * rows * len(schema.names), declared), path)
    strings = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]
    with parquet.ParquetFile(path, read_dictionary=strings) as file:
        return file.read(use_threads=False), _dictionaries(types, schema)


def _dictionaries(types: Any, schema: Any) -> list[str]:
    return [field.name for field in schema if types.is_dictionary(field.type)]


def _ipc(path: Path) -> tuple[Any, list[str]]:
    """As :func:`_parquet`, of a stream of Arrow's messages, which a file has between its magic words."""
    import pyarrow
    from pyarrow import ipc

    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"FEA1"):
        raise DataError(
            "cannot read the data file: it is Feather of version 1",
            where=str(path),
            instead="write it again with pyarrow.feather.write_feather, which writes version 2",
        )
    start = 8 if magic == b"ARROW1" else 0
    with pyarrow.OSFile(str(path)) as source:
        source.seek(start)
        messages = ipc.MessageReader.open_stream(source)
        require_room(max(path.stat().st_size, sum(map(unpacked_size, messages))), path)
        source.seek(start)
        with ipc.open_stream(source) as reader:
            check_names(reader.schema.names, str(path))
            found = reader.read_all()
    found.validate(full=True)  # offsets and texts of strangers
    return found, _dictionaries(pyarrow.types, found.schema)


def unpacked_size(message: Any) -> int:
    """Bytes that the buffers of one of Arrow's messages need, before anything is unpacked.

    Before each packed buffer stands its size, -1 where it is not packed; where the buffers are is told by
    the message's metadata, a table of FlatBuffers (``Message.fbs`` of Arrow: ``Message.header`` is a
    ``RecordBatch`` or a ``DictionaryBatch`` with one in it; a batch has ``buffers`` and ``compression``).
    """
    data, body = message.metadata.to_pybytes(), memoryview(message.body or b"")

    def at(form: str, place: int) -> int:
        return int(struct.unpack_from(f"<{form}", data, place)[0])

    def slot(table: int, number: int) -> int:
        """Where a field of a table is, 0 if it is left out."""
        offsets = table - at("i", table)
        there = 4 + 2 * number < at("H", offsets)
        offset = at("H", offsets + 4 + 2 * number) if there else 0
        return table + offset if offset else 0

    def follow(place: int) -> int:
        return place + at("I", place)

    root = at("I", 0)
    kind = message.type
    if kind not in ("record batch", "dictionary"):
        return 0
    batch = follow(slot(root, 2))
    if kind == "dictionary":
        batch = follow(slot(batch, 1))
    buffers = slot(batch, 2)
    if not slot(batch, 3) or not buffers:
        return len(body)
    places, total = follow(buffers), 0
    for number in range(at("I", places)):
        start, length = (at("q", places + 4 + 16 * number + i) for i in (0, 8))
        packed = struct.unpack_from("<q", body, start)[0] if length >= 8 else -1
        total += length if packed < 0 else packed
    return total


def _column(pa: Any, name: str, values: Any, path: Path, named: bool) -> Array:
    """A column as float64, or as texts; texts that look like numbers have to be ``named`` as texts."""
    kind, types = values.type, pa.types
    if types.is_null(kind):
        return np.full(len(values), np.nan)
    content = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(content) or types.is_large_string(content) or types.is_dictionary(kind):
        cells, levels = _texts(pa, name, values, path)
        odd = None if named else look_alike(levels)
        if odd is not None:
            row = int(np.flatnonzero(cells == odd)[0]) + 1
            raise no_number(odd, f"row {row}, column {shown(name)} of {path}")
        return cells
    if types.is_integer(kind):
        ends = pa.compute.min_max(values).as_py()
        if any(abs(end) > EXACT for end in ends.values() if end is not None):
            raise _refused(
                f"holds integers beyond {EXACT}, which floating point rounds", name, path
            )
    elif not (types.is_boolean(kind) or types.is_floating(kind) or types.is_decimal(kind)):
        what = "dates or times" if types.is_temporal(kind) else str(kind)
        raise _refused(f"holds {what[:80]}, which are no numbers", name, path)
    if types.is_boolean(kind):
        values = values.cast(pa.uint8())
    return np.array(values.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def _texts(pa: Any, name: str, values: Any, path: Path) -> tuple[Array, list[str]]:
    """Texts by row, None where missing, equal ones one object; and the distinct ones."""
    parts, known = [np.zeros(0, object)], dict[str, str]()
    for chunk in values.chunks:
        coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        levels: list[str | None] = [None]
        for level in coded.dictionary.to_pylist():
            if isinstance(level, int | float) and not isinstance(level, bool):
                level = number_name(level)
            if level is not None and not isinstance(level, str):
                raise _refused(
                    f"holds categories that are no texts but {chunk.type}"[:120], name, path
                )
            text = (level or "").strip()
            levels.append(None if text.lower() in MISSING else known.setdefault(text, text))
        places = coded.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        parts.append(np.array(levels, object)[places + 1])
    return np.concatenate(parts), list(known)


def _refused(found: str, name: str, path: Path) -> DataError:
    return DataError(
        f"cannot read the data file: the column {found}",
        where=f"column {shown(name)} of {path}",
        instead="name it in ignore of [data], or store numbers there (days since a date, say)",
    )
