"""From rows of a file to training and validation data: read, divided, described by a schema, and tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..base.untrusted import shown
from ..errors import DataError, expected_got, message
from ..losses.targets import mapped
from .data_files import ARCHIVES, FORMAT, Missing
from .data_spec import VALIDATION, DataSpec, DataSplit, Tensors
from .learned_schema import input_columns, learn_schema
from .table import Array, Table
from .table_schema import TableSchema
from .tables import TABLES, read_table

HELD_OUT = "validation_"
_PARTS = {"1": True, "true": True, "validation": True, "valid": True, "val": True}
_PARTS |= {"0": False, "false": False, "training": False, "train": False}
"""What a ``validation_column`` may hold: does the row validate?"""


def load_file(spec: DataSpec, classification: bool | None = None) -> DataSplit:
    """The data of a user's file; :class:`~gncompile.errors.DataError` if missing or malformed."""
    _check_keys(spec)
    train, held = _read(spec, spec.name, "name", classification)
    if spec.validation_file is not None:
        if held is not None:
            raise DataError(
                f"{train.where} has validation_x",
                where="validation_file in [data]",
                instead="leave one of them out",
            )
        held, _ = _read(spec, spec.validation_file, "validation_file", classification)
    return split(spec, train, held, classification)


def read_rows(path: str | Path, schema: TableSchema, targets: bool = False) -> Table:
    """The rows of a table or an archive for ``schema`` to encode; with ``targets`` to evaluate, too."""
    path = _located(str(path), "the file")
    if path.suffix in TABLES:
        return read_table(path, schema.texts)
    needed = [*schema.columns, *(schema.targets if targets else ())]
    if schema.weights is not None and targets:
        needed.append(schema.weights)
    return archive_table(_arrays(path, needed), needed, "", str(path))


def read_columns(path: str | Path, names: Sequence[str], asked: str) -> Array:
    """Columns of numbers of a table, ``[N, len(names)]``; ``asked`` says in errors what they are for."""
    path = _located(str(path), "the file")
    if path.suffix not in TABLES:
        raise DataError(
            f"{shown(str(path))} is no table",
            instead=f"give a file that ends in {', '.join(TABLES)}, with columns {', '.join(names)}",
        )
    table = read_table(path)
    columns = [table.column(name, asked) for name in names]
    for name, column in zip(names, columns, strict=True):
        if table.is_text(name) or not np.isfinite(column.astype(float)).all():
            raise DataError(
                f"the column {shown(name)} holds something else than finite numbers",
                where=str(path),
                instead=f"give a number in every row of {', '.join(names)}",
            )
    return np.stack(columns, axis=1).astype(float)


# --- Reading -----------------------------------------------------------------------------------------


def _check_keys(spec: DataSpec) -> None:
    """Raise for keys that say nothing about this kind of file, or contradict each other."""
    if spec.validation_file is not None and spec.validation_column is not None:
        raise DataError(
            "validation rows are given by a file and by a column",
            where="validation_file and validation_column in [data]",
            instead="leave one of them out",
        )
    if Path(spec.name).suffix in TABLES:
        return
    for key in ("targets", "inputs", "ignore", "categories"):
        if getattr(spec, key):
            raise DataError(
                "arrays have no named columns",
                where=f"{key} in [data]",
                instead="leave it out, or use a table (.csv, .parquet, .arrow)",
            )


def _located(name: str, key: str) -> Path:
    """The path of a file that is there, not empty, and of a kind that can be read."""
    try:
        if "\0" in name:
            raise ValueError("a NUL character")
        path = Path(name).expanduser()
        there, size = path.is_file(), path.stat().st_size if path.exists() else 0
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, an unknown user
        found = f"{shown(name)} is no path: {str(error)[:100]}"
        raise DataError(found, where=f"{key} in [data]") from None
    if path.suffix not in (*TABLES, *ARCHIVES):
        raise DataError(
            f"{shown(name)} is no kind of file that can be read",
            where=f"{key} in [data]",
            instead=f"use a file ending in {', '.join((*ARCHIVES, *TABLES))}",
        )
    if not there:
        raise DataError(
            f"no data file {name!r}",
            where=f"looked at {path.absolute()}",
            instead="check the path; a relative path is taken from the model file's folder",
        )
    if not size:
        raise DataError("cannot read the data file: it is empty", where=str(path))
    return path


def _read(
    spec: DataSpec, name: str, key: str, classification: bool | None
) -> tuple[Table, Table | None]:
    """The rows of a file, and those of its own validation arrays if it has some."""
    path = _located(name, key)
    if path.suffix in TABLES:
        one = classification and spec.target is None and len(spec.targets) == 1
        labels = spec.targets if one or spec.target == "label" else ()
        return read_table(path, (*spec.categories, *labels)), None
    needed = ["x"] if spec.target == "input" else ["x", "y"]
    needed += [n for n in (spec.weights, spec.validation_column) if n is not None]
    arrays = _arrays(path, [*needed, *(HELD_OUT + n for n in needed)])
    table = archive_table(arrays, needed, "", str(path))
    if f"{HELD_OUT}x" not in arrays:
        return table, None
    held = [n for n in needed if n != spec.validation_column]
    return table, archive_table(arrays, held, HELD_OUT, str(path))


def _arrays(path: Path, wanted: Sequence[str]) -> dict[str, Array]:
    try:
        arrays = ARCHIVES[path.suffix](path, wanted)
    except DataError:
        raise
    except Missing as error:
        raise DataError(_lacks(wanted[0], [wanted[0]], str(error), str(path))) from None
    except Exception as error:  # whatever a damaged file makes numpy, zipfile or safetensors raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"cannot read the data file: {said}", where=str(path), instead=FORMAT
        ) from error
    return arrays


def archive_table(
    arrays: Mapping[str, Array], needed: Sequence[str], prefix: str, where: str
) -> Table:
    """A table of the arrays ``needed``, one row a sample; in the file their names begin with ``prefix``."""
    found = {name: arrays[prefix + name] for name in needed if prefix + name in arrays}
    for name in needed:
        if name not in found:
            names = [prefix + each for each in needed]
            raise DataError(_lacks(prefix + name, names, ", ".join(arrays) or "none", where))
        values = found[name]
        if not values.ndim or not values.size:
            shape = (
                f"of shape {list(values.shape)} is empty" if values.ndim else "is a single number"
            )
            raise DataError(f"the array {prefix + name!r} {shape}", where=where, instead=FORMAT)
        if len(values) != len(found[needed[0]]):
            raise DataError(
                f"{prefix}{needed[0]} has {len(found[needed[0]])} samples, {prefix}{name} has {len(values)}",
                where=where,
                instead=FORMAT,
            )
    return Table(found, where, np.arange(len(found[needed[0]])), "index", prefix=prefix)


def _lacks(name: str, needed: Sequence[str], there: str, where: str) -> str:
    found = f"no array {name!r}\n{expected_got(', '.join(needed), there)}"
    return message(found, where=where, instead=FORMAT)


# --- Dividing ----------------------------------------------------------------------------------------


def split(
    spec: DataSpec,
    train: Table,
    held: Table | None,
    classification: bool | None = None,
    classes: tuple[str, ...] | None = None,
) -> DataSplit:
    """Tensors of training rows and of validation rows, which are ``held`` or taken from the former."""
    if held is not None and isinstance(spec.validation, float):
        raise DataError(
            f"validation = {spec.validation} is a share, and there are validation data already",
            where="validation in [data]",
            instead="give a number of samples, or leave it out",
        )
    names = input_columns(spec, train)
    count = spec.validation if isinstance(spec.validation, int) else None
    if spec.validation_column is not None:
        marked = _marked(train, spec.validation_column)
        train, held = train.take(np.flatnonzero(~marked)), train.take(np.flatnonzero(marked))
    elif held is None:
        rows, count = _held_out(spec, len(train), train.where), None
        order = permutation(len(train), spec.seed, 0)
        train, held = train.take(order[rows:]), train.take(order[:rows])
    train, held = _first(train, spec.train, "train"), _first(held, count, "validation")
    schema = learn_schema(spec, train, names, classification, classes)
    train_x = schema.encode(train)
    validation_x = schema.encode(held) if len(held) else _no_rows(train_x)
    shape = spec.shape
    if shape is None:
        shape = (
            (tuple(train.columns["x"].shape[1:]) or (1,)) if schema.archive else (schema.inputs,)
        )
    if math.prod(shape) != schema.inputs:
        raise DataError(
            "shape does not fit the samples\n"
            + expected_got(f"{schema.inputs} features", f"{list(shape)}"),
            where="shape in [data]",
        )
    if schema.target == "input" and schema.weights is None:
        return DataSplit(train_x, train_x, validation_x, validation_x, shape, schema)
    train_y = schema.targets_of(train)
    validation_y = schema.targets_of(held) if len(held) else _no_rows(train_y)
    return DataSplit(train_x, train_y, validation_x, validation_y, shape, schema)


def _no_rows(tensors: Tensors) -> Tensors:
    return mapped(lambda each: each[:0], tensors)


def _held_out(spec: DataSpec, rows: int, where: str) -> int:
    """How many of ``rows`` samples are held out."""
    given = VALIDATION if spec.validation is None else spec.validation
    held = max(1, round(given * rows)) if isinstance(given, float) else given
    if not 0 <= held < rows:
        raise DataError(
            f"cannot hold {held} of {rows} samples out for validation",
            where=where,
            instead=f"give {'fewer' if rows > 1 else 'more samples'}, or provide validation_x or "
            "validation_file",
        )
    return held


def _marked(table: Table, name: str) -> Array:
    """Which rows validate, by a column of flags or of the words ``train`` and ``validation``."""
    levels, codes = table.levels(name, "validation_column in [data]")
    marks = [_PARTS.get(level.lower()) for level in levels]
    if (codes < 0).any() or None in marks:
        wrong = codes < 0 if None not in marks else codes == marks.index(None)
        row = int(np.argmax(wrong))
        found = shown(levels[codes[row]], 40) if codes[row] >= 0 else "an empty cell"
        raise DataError(
            f"{found} does not say whether the row is for validation",
            where=table.place(row, name),
            instead='write true or false, 1 or 0, "train" or "validation"',
        )
    found_marks = np.array(marks, bool)[codes]
    if found_marks.all() or not found_marks.any():
        raise DataError(
            f"{'all' if found_marks.any() else 'no'} rows are marked for validation",
            where=f"column {shown(name)} of {table.where}",
            instead='mark some: true or false, 1 or 0, "train" or "validation"',
        )
    return found_marks


def _first(table: Table, count: int | None, key: str) -> Table:
    if count is None or count == len(table):
        return table
    if count > len(table):
        raise DataError(
            f"{count} samples asked for, but there are {len(table)}",
            where=f"{key} in [data], of {table.where}",
            instead="lower train or validation in [data]",
        )
    return table.take(np.arange(count))


def permutation(count: int, seed: int, epoch: int) -> Array:
    """A permutation of ``range(count)`` that depends on ``(seed, epoch)`` only.

    Sorting uniform numbers keeps it the same across numpy's versions; its own shuffles may change.
    """
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return np.argsort(stream.random(count), kind="stable")
