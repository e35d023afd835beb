"""What turns rows of a file into tensors, and a network's outputs into columns: a record that is kept with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

Array = np.ndarray[Any, np.dtype[Any]]
Name = Annotated[str, Field(min_length=1)]


class Record(BaseModel):
    """A frozen part of a schema, whose JSON reads back as exactly the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NumericColumn(Record):
    """A column of numbers, or an archive's ``x`` of ``size`` features, which then has tuples of them.

    ``(value - mean) / scale`` has mean 0 and variance 1 over the training rows where the schema standardises;
    ``fill`` takes the place of what is missing (None: refused).
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
    """A column of categories: its ``levels``, and whether one more stands for all that is ``missing`` or new."""

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
    ``"value"`` the numbers of the columns ``targets``, ``"input"`` its own numeric inputs. ``outputs`` is how many
    numbers that are. All numbers stay in the file's own units: ``mean`` and ``scale`` of the columns, and
    ``target_mean``, ``target_scale`` of numbers that are produced (None without ``standardise``, and for classes),
    are for the network to undo. ``weights`` is the column of the samples' weights.
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


def _features(parts: Sequence[tuple[float | tuple[float, ...], int]]) -> torch.Tensor:
    columns = [torch.as_tensor(each, dtype=torch.float64).expand(size) for each, size in parts]
    return torch.cat(columns) if columns else torch.zeros(0, dtype=torch.float64)
