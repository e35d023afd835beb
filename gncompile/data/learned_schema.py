"""A schema as the training rows have it: which columns are what, their means, scales, levels, classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..base.untrusted import shown
from ..errors import DataError
from .data_spec import DataSpec, Target
from .table import Array, Table, is_number, plain_name
from .table_schema import IMPUTE, CategoryColumn, NumericColumn, TableSchema, floating

MOST_LEVELS = 10**6
"""Of one column of categories."""
TARGETS = "targets in [data]"


def learn_schema(
    spec: DataSpec,
    table: Table,
    names: Sequence[str],
    classification: bool | None = None,
    classes: tuple[str, ...] | None = None,
) -> TableSchema:
    """What ``spec`` makes of training rows, of which the columns ``names`` go in; see :func:`input_columns`.

    Targets are labels where ``spec.target`` says so; else where they are texts or named in ``categories``,
    or where a ``classification`` is asked for and there is one number a sample. ``classes`` are a named
    set's; by default the labels that are there, in the order of numbers or of letters. Raises
    :class:`DataError`.
    """
    archive = table.row_word == "index"
    standardise = not archive if spec.standardise is None else spec.standardise
    targets = ("y",) if archive else spec.targets
    target = spec.target or _target(spec, table, targets, classification)
    named = [n for n in names if n in spec.categories or (table.is_text(n) and target != "input")]
    numeric = tuple(_numeric(spec, table, n, standardise) for n in names if n not in named)
    if target == "input" and named:
        raise DataError(
            "an autoencoder gives numbers back, no categories",
            where="categories in [data]",
            instead="name these columns in ignore",
        )
    mean = scale = None
    if target == "label":
        classes = classes or _classes(table, targets)
        outputs = len(classes)
    else:
        classes = None
        found: list[Any] = [(c.mean, c.scale) for c in numeric]
        outputs = sum(c.size for c in numeric)
        if target == "value":
            blocks = [table.numbers(n, TARGETS).reshape(len(table), -1) for n in targets]
            outputs = sum(each.shape[1] for each in blocks)
            found = [
                moments(b, n, table) for b, n in zip(blocks, targets, strict=True) if standardise
            ]
        if standardise:
            mean, scale = (tuple(np.hstack(each).tolist()) for each in zip(*found, strict=True))
    return TableSchema(
        target=target,
        numeric=numeric,
        categories=tuple(_category(spec, table, name) for name in named),
        targets=targets if target != "input" else (),
        classes=classes,
        target_mean=mean,
        target_scale=scale,
        outputs=outputs,
        weights=spec.weights,
        standardise=standardise,
        archive=archive,
    )


def moments(values: Array, name: str, table: Table) -> tuple[Array, Array]:
    """Mean and standard deviation ``[d]`` of the numbers of ``values: [N, d]`` that are not NaN, in float64.

    They are those of ``u = (values - c) / r``, with the middle c and half the range r of each column, so
    that no offset cancels and no square overflows: ``c + r mean(u)`` and ``r sqrt(mean((u - mean(u))²))``.
    A column without any deviation has scale 1.
    """
    # One column after another in memory: its sums are pairwise, and the same whatever stands beside it.
    rows = np.array(values.T, np.float64, order="C")
    there = ~np.isnan(rows)
    count = there.sum(axis=1)
    if not count.all():
        raise DataError(
            f"the column {shown(name)} holds no numbers",
            where=table.where,
            instead="name it in ignore of [data]",
        )
    low = np.min(rows, axis=1, where=there, initial=np.inf)
    high = np.max(rows, axis=1, where=there, initial=-np.inf)
    centre, reach = low / 2 + high / 2, high / 2 - low / 2
    reach = np.where(reach > 0, reach, 1.0)
    unit = np.where(there, (rows - centre[:, None]) / reach[:, None], 0.0)
    offset = unit.sum(axis=1) / count
    spread = np.sqrt((np.where(there, unit - offset[:, None], 0.0) ** 2).sum(axis=1) / count)
    scale = reach * spread
    return centre + reach * offset, np.where((high > low) & (scale > 0), scale, 1.0)


# --- What a column is --------------------------------------------------------------------------------


def input_columns(spec: DataSpec, table: Table) -> list[str]:
    """The columns that go in: of an archive ``x``.

    Raises :class:`DataError` unless every column that ``spec`` names is there, and has one part to play.
    """
    if table.row_word == "index":
        return ["x"]
    if not spec.targets and spec.target != "input":
        raise DataError(
            "a table needs its target columns named",
            where=table.where,
            instead='write targets = ["column"] in [data], or target = "input"',
        )
    single = {"weights": spec.weights, "validation_column": spec.validation_column}
    parts: dict[str, tuple[str, ...]] = {
        "targets": spec.targets,
        "inputs": spec.inputs,
        "ignore": spec.ignore,
        **{key: (name,) for key, name in single.items() if name is not None},
    }
    for key, named in {**parts, "categories": spec.categories}.items():
        for name in named:
            if name not in table.names:
                table.column(name, f"{key} in [data]")
        twice = [name for name, count in Counter(named).items() if count > 1]
        if twice:
            raise DataError(
                f"{key} in [data] names a column twice: {shown(twice[0])}",
                where="[data]",
                instead="name each column once",
            )
    played = [name for named in parts.values() for name in named]
    for name, count in Counter(played).items():
        if count > 1:
            keys = " and ".join(key for key, named in parts.items() if name in named)
            raise DataError(
                f"the column {shown(name)} is named in {keys}",
                where="[data]",
                instead="let it be one of them",
            )
    left = [name for name in table.names if name not in played]
    found = list(spec.inputs) or left
    for name in spec.categories:
        if name not in found and name not in spec.targets:
            raise DataError(
                f"the column {shown(name)} does not go in",
                where="categories in [data]",
                instead="name it in inputs, or leave it out of categories",
            )
    if not found:
        raise DataError(
            "all columns are targets or left out, none is left as an input",
            where=table.where,
            instead="name fewer in targets and ignore of [data]",
        )
    for name in found:  # before anything else is said of the rows
        table.numbers(name) if spec.target == "input" else table.column(name)
    if spec.missing == "refuse":  # of the whole file at once
        table.require_filled([(name, table.empty(name)) for name in found], IMPUTE)
    return found


def _target(
    spec: DataSpec, table: Table, targets: tuple[str, ...], classification: bool | None
) -> Target:
    """``"label"`` or ``"value"``, by the targets and by what the loss is for."""
    names = [n for n in targets if table.is_text(n) or n in spec.categories]
    if names and classification is False:
        raise DataError(
            f"the target {shown(names[0])} holds names, and the loss is one of numbers",
            where=f"{TARGETS}, and [loss]",
            instead='write name = "cross_entropy" in [loss], or use targets that are numbers',
        )
    one = len(targets) == 1 and table.column(targets[0], TARGETS).size == len(table)
    return "label" if names or (classification and one) else "value"


def _numeric(spec: DataSpec, table: Table, name: str, standardise: bool) -> NumericColumn:
    values = table.numbers(name).reshape(len(table), -1)
    size, single = values.shape[1], table.row_word != "index"
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0
    fill = None
    if standardise or spec.missing == "impute":
        found = moments(floating(values, table.where).numpy(), name, table)
        centre, width = (each.item() if single else tuple(each.tolist()) for each in found)
        mean, scale = (centre, width) if standardise else (mean, scale)
        fill = centre if spec.missing == "impute" else None
    return NumericColumn(name=name, mean=mean, scale=scale, fill=fill, size=size)


def _category(spec: DataSpec, table: Table, name: str) -> CategoryColumn:
    levels = _sorted(table.levels(name)[0])
    if not 0 < len(levels) <= MOST_LEVELS:
        raise DataError(
            f"the column {shown(name)} has {len(levels)} different values",
            where=table.where,
            instead="name it in ignore of [data]",
        )
    return CategoryColumn(name=name, levels=levels, missing=spec.missing == "impute")


def _classes(table: Table, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The labels of the one target column."""
    if len(targets) != 1 or table.column(targets[0], TARGETS).size != len(table):
        raise DataError(
            "labels must be one whole number or text a sample, and these targets are more than one",
            where=table.where,
            instead='name one column in targets, or use target = "value"',
        )
    levels, codes = table.levels(targets[0], TARGETS)
    wrong = next((x for x in levels if is_number(x) and not float(x).is_integer()), None)
    if wrong is not None and all(map(is_number, levels)):
        row = int(np.argmax(codes == levels.index(wrong)))
        raise DataError(
            f"labels must be one whole number or text a sample, and there is {wrong}",
            where=table.place(row, targets[0]),
            instead='use target = "value" for other targets',
        )
    if len(levels) < 2:
        found = (
            f"all samples have the label {shown(levels[0])}" if levels else "no sample has a label"
        )
        raise DataError(
            found,
            where=f"column {shown(targets[0])} of {table.where}",
            instead="give samples of two classes or more",
        )
    return _sorted(levels)


def _sorted(levels: Collection[str]) -> tuple[str, ...]:
    """Names in the order of numbers, and then called as these are, if all are some; else of letters."""
    if all(map(is_number, levels)):
        return tuple(sorted({plain_name(level) for level in levels}, key=float))
    return tuple(sorted(levels))
