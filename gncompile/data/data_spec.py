"""Which data a model is trained on, and what they are once read: two records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field

from ..errors import DataError
from ..losses.targets import mapped, tensors_of
from .table_schema import TableSchema

Target = Literal["input", "label", "value"]
VALIDATION = 0.1
"""The share of the rows that is held out where nobody says how many."""


@dataclass(frozen=True)
class DataSpec:
    """Which data, and what the network has to produce from it.

    ``name`` is ``"curves"``, ``"mnist"``, or a file (in a model file, relative to the model file's folder):
    a table ``.csv``, ``.parquet``, ``.arrow``, ``.feather``, or an archive ``.npz``, ``.safetensors`` with
    arrays ``x`` and ``y``. ``target``: ``"input"`` (an autoencoder), ``"label"`` (classes), ``"value"``
    (numbers). Default: curves ``"input"``, mnist ``"label"``, files as their targets and the loss have it
    (see :func:`~gncompile.data.load`). ``train`` and ``validation`` are numbers of samples, default
    everything the set has; CURVES has 20,000 and 10,000 as published. ``shape`` says how a flat sample is
    laid out.

    Of a table, ``targets`` names the target columns, ``inputs`` the columns that go in (default: all
    others), ``ignore`` those that are left out; ``categories`` names columns of numbers that are taken as
    categories, as columns of texts are anyway. ``weights`` is a column, or an archive's array, with a
    weight for each sample. ``missing = "impute"`` puts the mean of the training rows for a number that is
    missing, and a level of its own for a category; else missing cells are refused. ``standardise``
    (default: tables yes, archives and named sets no) keeps mean and scale of the training rows in the
    schema.

    Validation rows are those of ``validation_file``, or those that ``validation_column`` marks (true, 1 or
    ``"validation"``), or an archive's ``validation_x``; else ``validation`` of them, a number or a share
    below 1 (default: a tenth), are held out in an order that ``seed`` decides. 0 trains on all rows.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid", "strict": True}

    name: Annotated[
        str,
        Field(
            description="`curves`, `mnist`, or a file: a table `.csv`, `.parquet`, `.arrow`, `.feather`, or "
            "arrays `x` and `y` in an `.npz`, `.safetensors`; beside the model file, or below its folder"
        ),
    ]
    target: Annotated[
        Target | None,
        Field(
            description="what is produced: classes, numbers, or the inputs again. Default: classes where the "
            "targets are texts or the loss is `cross_entropy`, the inputs of CURVES, else numbers"
        ),
    ] = None
    train: Annotated[
        int | None, Field(description="training samples, from 1. Default: all there are")
    ] = None
    validation: Annotated[
        int | float | None,
        Field(
            description="samples held out, a number or a share below 1; 0 trains on all, without a "
            "validation. Default: a tenth, or the file's `validation_x`"
        ),
    ] = None
    seed: Annotated[
        int, Field(description="decides which samples are held out, and draws CURVES")
    ] = 0
    targets: Annotated[tuple[str, ...], Field(description="a table's target columns, by name")] = ()
    shape: Annotated[
        tuple[int, ...] | None,
        Field(description="layout of a flat sample, for pictures of reconstructions: `[28, 28]`"),
    ] = None
    inputs: Annotated[
        tuple[str, ...],
        Field(description="a table's columns that go in. Default: all others"),
    ] = ()
    ignore: Annotated[tuple[str, ...], Field(description="a table's columns to leave out")] = ()
    categories: Annotated[
        tuple[str, ...],
        Field(
            description="columns of numbers that are names of categories, as columns of texts are anyway; "
            "each is embedded in half as many numbers as it has levels, 50 at most"
        ),
    ] = ()
    standardise: Annotated[
        bool | None,
        Field(
            description="let the network see inputs, and targets of a loss of differences, with mean 0 "
            "and scale 1; predictions and metrics keep the file's units. Default: tables yes, arrays no"
        ),
    ] = None
    missing: Annotated[
        Literal["refuse", "impute"],
        Field(
            description="`impute` puts the training mean for a number that is missing, and a level of its "
            "own for a category"
        ),
    ] = "refuse"
    validation_file: Annotated[
        str | None, Field(description="another file, whose samples are the validation")
    ] = None
    validation_column: Annotated[
        str | None, Field(description='a column that marks them: true, 1 or `"validation"`')
    ] = None
    weights: Annotated[
        str | None, Field(description="a column, or an array, of weights of the samples")
    ] = None


Tensors = Any
"""A tensor with one row a sample, or a pair: ``(numbers, categories)``, ``(y, weights)``."""


@dataclass(frozen=True)
class DataSplit:
    """Flat samples ``[N, size]`` and their targets; ``shape`` is one sample's own layout, ``(28, 28)``.

    Where a table has columns of categories, ``train_x`` and ``validation_x`` are pairs ``(numbers [N, d],
    categories [N, c])``, the latter int64; where samples have weights, the targets are pairs ``(y, weights
    [N])``, as :func:`gncompile.losses.weighted` takes them. ``schema`` turns other rows into such tensors,
    and outputs into columns. Without validation, its tensors have no rows.
    """

    train_x: Tensors
    train_y: Tensors
    validation_x: Tensors
    validation_y: Tensors
    shape: tuple[int, ...]
    schema: TableSchema | None = None

    @property
    def validation(self) -> tuple[Tensors, Tensors] | None:
        """``(validation_x, validation_y)``; None without validation."""
        pair = self.validation_x, self.validation_y
        return pair if len(tensors_of(self.validation_x)[0]) else None

    def to(self, dtype: torch.dtype) -> DataSplit:
        """The same data with floating point tensors in ``dtype``; labels stay integers.

        Raises :class:`DataError` for a number that is infinite there, and for a column to be standardised
        that varies by less than ``dtype`` resolves around its mean.
        """
        if self.schema is not None and self.schema.standardise:
            self.schema.require_resolved(dtype, self.train_x, self.train_y)

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            given = tensor.to(dtype)
            if not torch.isfinite(given).all():
                row = int((~torch.isfinite(given)).nonzero()[0][0])
                largest = tensor.flatten()[tensor.abs().argmax()].item()
                raise DataError(
                    f"the data do not fit into {dtype}: {largest:g}",
                    where=f"sample {row}",
                    instead='scale them, or train with dtype = "float64"',
                )
            return given

        train_x, validation_x = mapped(cast, self.train_x), mapped(cast, self.validation_x)
        train_y = train_x if self.train_y is self.train_x else mapped(cast, self.train_y)
        if self.schema is not None and self.schema.weights and not train_y[1].any():
            raise DataError(
                f"the weights are all 0 in {dtype}, the largest being {self.train_y[1].max():g}",
                where=f"column {self.schema.weights!r}",
                instead="multiply them by a large number",
            )
        same = self.validation_y is self.validation_x
        validation_y = validation_x if same else mapped(cast, self.validation_y)
        return replace(
            self,
            train_x=train_x,
            train_y=train_y,
            validation_x=validation_x,
            validation_y=validation_y,
        )

    def digest(self) -> str:
        """A hash of all numbers, their types and shapes, and of the schema."""
        found = hashlib.sha256()
        parts = (self.train_x, self.train_y, self.validation_x, self.validation_y)
        for tensor in (each for part in parts for each in tensors_of(part)):
            found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            found.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            )
        if self.schema is not None:
            found.update(self.schema.model_dump_json().encode())
        return found.hexdigest()
