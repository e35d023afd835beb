"""What turns rows of a file into tensors, and a network's outputs into columns: a record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from ..base.untrusted import shown
from ..errors import DataError, expected_got
from .table import EXACT, Array, Table, first_cell, is_number, plain_name

COARSEST = 0.01
"""Of a column's scale, between two neighbouring numbers."""
LEAVE_OUT = "leave the samples out, or write numbers there"
IMPUTE = 'leave the samples or the column out (ignore), or write missing = "impute" in [data]'
IN_CATEGORIES = ', name the column in ignore of [data], or write missing = "impute"'
AS_NUMBERS = {
    "category": "; if these numbers are no names, leave the column out of categories",
    "label": '; if these numbers are no classes, write target = "value" in [data], and a loss of numbers',
}
"""What else to do where names are numbers."""
_WHOLE = re.compile(r"-?[0-9]{1,15}")
Name = Annotated[str, Field(min_length=1)]


class Record(BaseModel):
    """A frozen part of a schema, whose JSON reads back as exactly the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NumericColumn(Record):
    """A column of numbers, or an archive's ``x`` of ``size`` features, which then has tuples of them.

    ``(value - mean) / scale`` has mean 0 and variance 1 over the training rows where the schema
    standardises; ``fill`` takes the place of what is missing (None: refused).
    """

    name: Name
    mean: float | tuple[float, ...] = 0.0
    scale: PositiveFloat | tuple[PositiveFloat, ...] = 1.0
    fill: float | tuple[float, ...] | None = None
    size: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _one_number_a_feature(self) -> NumericColumn:
        for numbers in (self.mean, self.scale, self.fill):
            if isinstance(numbers, tuple) and len(numbers) != self.size:
                raise ValueError(f"{len(numbers)} numbers for {self.size} features")
        return self


class CategoryColumn(Record):
    """A column of categories: its ``levels``, and whether one more stands for what is ``missing`` or new."""

    name: Name
    levels: Annotated[tuple[str, ...], Field(min_length=1)]
    missing: bool = False

    @property
    def size(self) -> int:
        """Levels in all: rows of an embedding."""
        return len(self.levels) + self.missing


class TableSchema(Record):
    """Which columns go in and come out, and how: of a table, or of an archive's arrays (``archive``).

    ``target`` is what the network produces: ``"label"`` a score for each of the ``classes`` of one column,
    ``"value"`` the numbers of the columns ``targets``, ``"input"`` its own numeric inputs. ``outputs`` is
    how many numbers that are. All numbers stay in the file's own units: ``mean`` and ``scale`` of the
    columns, and ``target_mean``, ``target_scale`` of numbers that are produced (None without
    ``standardise``, and for classes), are for the network to undo. ``weights`` is the column of the
    samples' weights.
    """

    target: Literal["input", "label", "value"]
    numeric: tuple[NumericColumn, ...]
    categories: tuple[CategoryColumn, ...] = ()
    targets: tuple[Name, ...] = ()
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    target_mean: tuple[float, ...] | None = None
    target_scale: tuple[PositiveFloat, ...] | None = None
    outputs: Annotated[int, Field(ge=1)]
    weights: Name | None = None
    standardise: bool = False
    archive: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> TableSchema:
        names = self.columns
        if len(set(names)) < len(names) or not names:
            raise ValueError("the columns that go in need names that differ")
        for listed in (self.targets, self.classes or (), *(c.levels for c in self.categories)):
            if len(set(listed)) < len(listed):
                raise ValueError("targets, classes and levels need names that differ")
        if self.target != "input" and not self.targets:
            raise ValueError("what is produced needs a name")
        if self.archive and (self.categories or len(self.numeric) != 1):
            raise ValueError("an archive has one array that goes in")
        if not self.archive and any(c.size > 1 for c in self.numeric):
            raise ValueError("a table's column is one feature")
        if (self.target == "label") != (self.classes is not None):
            raise ValueError("classes are for labels")
        wanted = {"label": len(self.classes or ()), "input": self.inputs}.get(self.target)
        if self.target == "value":
            wanted = self.outputs if self.archive else len(self.targets)
        if self.outputs != wanted:
            raise ValueError(f"{self.outputs} outputs where there are {wanted} to produce")
        for numbers in (self.target_mean, self.target_scale):
            if numbers is not None and len(numbers) != self.outputs:
                raise ValueError(f"{len(numbers)} means or scales for {self.outputs} outputs")
        return self

    # --- Columns

    @property
    def columns(self) -> list[str]:
        """The names of what goes in: numeric columns, then categories."""
        return [*(c.name for c in self.numeric), *(c.name for c in self.categories)]

    @property
    def inputs(self) -> int:
        """Numeric features of a sample; categories come beside them."""
        return sum(column.size for column in self.numeric)

    @property
    def input_mean(self) -> torch.Tensor:
        """``float64 [inputs]``, zero without ``standardise``."""
        return _features([(c.mean, c.size) for c in self.numeric])

    @property
    def input_scale(self) -> torch.Tensor:
        """``float64 [inputs]``, one without ``standardise``."""
        return _features([(c.scale, c.size) for c in self.numeric])

    @property
    def output_mean(self) -> torch.Tensor:
        """``float64 [outputs]``, zero where nothing is to be undone."""
        return _features([(self.target_mean or 0.0, self.outputs)])

    @property
    def output_scale(self) -> torch.Tensor:
        """``float64 [outputs]``, one where nothing is to be undone."""
        return _features([(self.target_scale or 1.0, self.outputs)])

    @property
    def output_names(self) -> list[str]:
        """What the numbers are called that a network produces: classes, target columns, or its inputs."""
        if self.classes is not None:
            return list(self.classes)
        if not self.archive:
            return list(self.targets) if self.target == "value" else [c.name for c in self.numeric]
        name = self.targets[0] if self.target == "value" else self.numeric[0].name
        return [name] if self.outputs == 1 else [f"{name}[{i}]" for i in range(self.outputs)]

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns that a CSV file is read as texts for, digits too: ``read_table(path, texts=…)``."""
        labels = self.targets if self.classes is not None else ()
        return (*(column.name for column in self.categories), *labels)

    # --- From a file's rows, and to them

    def encode(self, table: Table) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The inputs ``[N, inputs]``, or with categories ``(inputs, int64 [N, categories])``.

        Columns are found by name, in any order; others are not looked at. Raises :class:`DataError`, by row
        and column, for a column that is not there, missing cells and categories that training has not seen,
        unless the schema has something to put there.
        """
        blocks, missing = [], []
        for column in self.numeric:
            values = _rows(table.numbers(column.name), column.size, table, column.name)
            if values.dtype.kind == "f" and (lost := np.isnan(values)).any():
                if column.fill is None:
                    missing.append((column.name, lost))
                else:
                    values = np.where(lost, np.asarray(column.fill, values.dtype), values)
            blocks.append(values)
        picked = []
        for category in self.categories:
            codes, empty = _codes(
                table, category.name, category.levels, "category", category.missing
            )
            if not category.missing:
                missing.append((category.name, empty))
            picked.append(codes)
        table.require_filled(missing, IMPUTE)
        place = f"{self.numeric[0].name} of {table.where}" if self.archive else table.where
        if len(blocks) != 1:
            blocks = [np.hstack([np.zeros((len(table), 0)), *blocks])]
        numbers = floating(blocks[0], place)
        if not self.categories:
            return numbers
        return numbers, torch.from_numpy(np.stack(picked, axis=1))

    def targets_of(self, table: Table) -> Any:
        """What a network has to produce: numbers ``[N, outputs]``, or class numbers ``int64 [N]``.

        With a column of weights it is a pair ``(targets, weights [N])``. Raises :class:`DataError` for
        columns that are not there, missing cells, weights that are negative, and labels that training has
        not seen.
        """
        asked = "targets in [data]"
        if self.classes is not None:
            codes, empty = _codes(table, self.targets[0], self.classes, "label", False)
            table.require_filled([(self.targets[0], empty)], LEAVE_OUT)
            y: Any = torch.from_numpy(codes)
        elif self.target == "input":
            y = self.encode(table)
        else:
            size = self.outputs if self.archive else 1
            columns = [_rows(table.numbers(n, asked), size, table, n) for n in self.targets]
            lost = [(n, np.isnan(c)) for n, c in zip(self.targets, columns, strict=True)]
            table.require_filled(lost, LEAVE_OUT)
            place = f"{self.targets[0]} of {table.where}" if self.archive else table.where
            y = floating(
                np.hstack(columns) if len(columns) > 1 else columns[0], place, images=False
            )
        return y if self.weights is None else (y, _weights(table, self.weights))

    def require_resolved(self, dtype: torch.dtype, x: Any, y: Any) -> None:
        """Raise :class:`DataError` for a column of training data that ``dtype`` rounds to a few values.

        Next to a mean m neighbouring numbers are ``eps |m|`` apart, which has to be little of the column's
        scale.
        """
        numbers = x if isinstance(x, torch.Tensor) else x[0]
        parts = [(numbers, self.input_mean, self.input_scale, self.columns)]
        if self.target == "value":
            values = y if isinstance(y, torch.Tensor) else y[0]
            parts.append((values, self.output_mean, self.output_scale, self.output_names))
        for values, mean, scale, names in parts:
            rough = torch.finfo(dtype).eps * mean.abs() > COARSEST * scale
            for i in rough.nonzero()[:, 0].tolist():
                low, high = (each.item() for each in torch.aminmax(values[:, i]))
                if low < high:
                    name = shown(names[min(i, len(names) - 1)])
                    raise DataError(
                        f"{dtype} cannot tell numbers between {low:.12g} and {high:.12g} apart",
                        where=f"column {name}",
                        instead='train with dtype = "float64", subtract an offset, or ignore the column',
                    )

    def decode(self, outputs: Any) -> dict[str, Array]:
        """Columns of a network's outputs ``[N, outputs]``, a tensor or an array, by name.

        Numbers are those of ``output_names``, in the file's units. Of classes, the target column has the
        likeliest one, and ``probability_CLASS`` its softmax; a single output for two classes is the log
        odds of the second. Raises :class:`DataError` for outputs of another size, or that are not finite.
        """
        z = np.asarray(outputs.detach().cpu() if isinstance(outputs, torch.Tensor) else outputs)
        z = z.reshape(len(z), -1)
        if self.outputs == 2 and self.classes is not None and z.shape[1] == 1:
            z = np.hstack([np.zeros_like(z), z])
        if z.shape[1] != self.outputs:
            raise DataError(
                "the outputs are not those of this schema\n"
                + expected_got(f"{self.outputs} numbers a sample", z.shape[1])
            )
        if not np.isfinite(z).all():
            raise DataError(
                f"the outputs of sample {first_cell(~np.isfinite(z))[0]} are not finite"
            )
        if self.classes is None:
            return {name: z[:, i] for i, name in enumerate(self.output_names)}
        names = np.array(self.classes)
        if all(map(_WHOLE.fullmatch, self.classes)):
            names = names.astype(np.int64)
        odds = np.exp(z - z.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        chances = {f"probability_{name}": odds[:, i] for i, name in enumerate(self.classes)}
        return {self.targets[0]: names[z.argmax(axis=1)], **chances}


def floating(values: Array, where: str, images: bool = True) -> torch.Tensor:
    """Numbers as they are: float32 where that holds every number of their type, else float64.

    Bytes are ``images`` of 256 grey levels, and become numbers of [0, 1].
    """
    if (
        values.dtype.kind in "iu"
        and values.size
        and (values.max() > EXACT or values.min() < -EXACT)
    ):
        raise DataError(
            f"there are integers beyond {EXACT}, which floating point rounds",
            where=where,
            instead="subtract an offset, or store them as float64 if rounding is meant",
        )
    exact = np.float32 if np.can_cast(values.dtype, np.float32) else np.float64
    tensor = torch.from_numpy(np.array(values, exact, order="C"))
    return tensor.double() / 255 if images and values.dtype == np.uint8 else tensor


def _rows(values: Array, size: int, table: Table, name: str) -> Array:
    """``values`` as ``[N, size]``."""
    flat = values.reshape(len(table), -1)
    if flat.shape[1] != size:
        raise DataError(
            f"the samples of {name!r} differ in size from those of the training data\n"
            + expected_got(f"{size} features", f"{flat.shape[1]} features"),
            where=table.where,
        )
    return flat


def _codes(
    table: Table, name: str, known: tuple[str, ...], what: str, missing: bool
) -> tuple[Array, Array]:
    """The places of a column's values among the ``known``, and where cells are empty.

    A value that is not known is refused, or with ``missing`` gets the place after all of them, as an empty
    cell does. A text that is a number may be spelled otherwise than in training.
    """
    levels, codes = table.levels(name)
    places = {level: place for place, level in enumerate(known)}
    new = len(known) if missing else -1
    found = [places.get(x, places.get(plain_name(x), new)) for x in levels]
    empty = codes < 0
    given = np.where(empty, new, np.array([*found, new], np.int64)[codes])
    if not missing and ((given < 0) & ~empty).any():
        row = int(np.argmax((given < 0) & ~empty))
        raise DataError(
            f"the {what} {shown(levels[codes[row]], 60)} is in no training sample",
            where=table.place(row, name),
            instead="give training samples of it, leave the sample out"
            + (IN_CATEGORIES if what == "category" else "")
            + (AS_NUMBERS[what] if is_number(levels[codes[row]]) else ""),
        )
    return given, empty


def _weights(table: Table, name: str) -> torch.Tensor:
    """A weight ``>= 0`` for each sample, ``[N]``."""
    values = _rows(table.numbers(name, "weights in [data]"), 1, table, name)[:, 0]
    table.require_filled([(name, np.isnan(values))], LEAVE_OUT)
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        raise DataError(
            f"a sample has the weight {values[row]:g}",
            where=table.place(row, name),
            instead="use weights from 0; 0 leaves a sample out",
        )
    if not values.any():
        raise DataError(
            "all samples have the weight 0",
            where=f"column {shown(name)} of {table.where}",
            instead="give some of them a weight above 0",
        )
    return floating(values, f"{name} of {table.where}", images=False)


def _features(parts: Sequence[tuple[float | tuple[float, ...], int]]) -> torch.Tensor:
    columns = [torch.as_tensor(each, dtype=torch.float64).expand(size) for each, size in parts]
    return torch.cat(columns) if columns else torch.zeros(0, dtype=torch.float64)
