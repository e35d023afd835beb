"""``gncompile init``: a model file for a user's data, with what was guessed and what could be said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..base.files import atomic_write
from ..base.tables import count
from ..base.untrusted import shown, slug
from ..data.data_files import ARCHIVES, Missing
from ..data.data_spec import VALIDATION
from ..data.table import Array, Table
from ..data.tables import TABLES, read_table
from ..errors import DataError, GncompileError, visible
from ..frontends.network_schema import HIDDEN
from ..frontends.training_schema import EPOCHS, PATIENCE

TARGETS = ("target", "targets", "label", "labels", "class", "y", "output", "outcome")
"""Names that a column of targets mostly has; else it is the last one."""
FEW = 20
"""Distinct whole numbers that are taken for classes, where they are no more than a tenth of the samples."""
MANY = 0.5
"""Levels for each sample, from which a column of texts is one of identifiers."""
STANDARDISE = (
    "standardise = true  # the network sees mean 0 and scale 1; predictions keep their units"
)


@dataclass(frozen=True)
class Guess:
    """What a data file seems to hold: lines of ``[data]``, and whether its targets are classes."""

    samples: int
    classes: bool
    autoencoder: bool = False
    lines: Sequence[str] = field(default=())

    @property
    def loss(self) -> str:
        return "cross_entropy" if self.classes else "mse"

    @property
    def metrics(self) -> list[str]:
        return ["accuracy"] if self.classes else ["r2", "rmse"]


def init_file(data: Path, out: Path | None = None, target: str | None = None) -> Path:
    """Write a commented model file for ``data``, by default beside it, and return its path.

    A table's targets are the column ``target``, by default the one with a usual name, else the last one.
    Raises :class:`~gncompile.errors.GncompileError` for a file that is there already, and for data that
    cannot be read.
    """
    path = out or data.with_suffix(".toml")
    if os.path.lexists(path):
        raise GncompileError(
            f"{shown(str(path))} exists already",
            instead="choose another file with -o, or delete it",
        )
    try:
        there = data.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise DataError(f"no data file {shown(str(data))}", instead="check the path")
    if data.suffix in TABLES:
        guess = guess_table(read_table(data), target)
    elif data.suffix in ARCHIVES:
        guess = guess_arrays(data)
    else:
        raise DataError(
            f"{shown(data.name)} is no kind of data file",
            instead=f"give a file ending in {', '.join([*TABLES, *ARCHIVES])}",
        )
    name = Path(os.path.relpath(data.resolve(), path.absolute().parent.resolve()))
    if ".." in name.parts or name.is_absolute():
        raise GncompileError(
            f"{shown(str(path))} would name data outside its folder",
            instead="write it beside the data or above them, or copy the data",
        )
    text = written(guess, name.as_posix(), data.stem)
    try:
        return atomic_write(path, text.encode())
    except UnicodeEncodeError as error:  # half a surrogate pair, from a file name in no encoding
        raise GncompileError(
            f"{shown(data.name)} cannot be written as UTF-8: {error.reason}", instead="rename it"
        ) from None


def written(guess: Guess, name: str, title: str) -> str:
    """The text of a model file."""
    default = "[64, 8, 64]" if guess.autoencoder else str(list(HIDDEN))
    network = [
        "[network]",
        f"hidden = {default}  # sizes of the hidden layers; inputs and outputs follow from the data",
        'transfer = "tanh"  # or "relu", "silu", "gelu", an expression in u, …',
    ]
    if guess.autoencoder:
        network.append("code_layer = 2  # the code, which stays linear")
    return "\n".join(
        [
            "# A model file of gncompile; docs/model_file.md tells every key.",
            "#   gncompile check FILE    says what it describes, and what is wrong",
            "#   gncompile train FILE    trains it",
            "",
            "[model]",
            f"name = {in_toml(slug(title, 'model'))}",
            "",
            "[data]",
            f"name = {in_toml(name)}  # {count(guess.samples, 'sample')}",
            *guess.lines,
            f"validation = {VALIDATION}  # the share that is held out; or validation_file, validation_column",
            "",
            *network,
            "",
            "[loss]",
            f"name = {in_toml(guess.loss)}",
            "",
            "[training]",
            "batch_size = 1000  # samples of a step; all, where there are fewer",
            f"epochs = {EPOCHS}",
            f"early_stop = {PATIENCE}  # validations without a better loss that end the training",
            f"# metrics = {listed(guess.metrics)}  # needs scikit-learn",
            '# log = ["csv", "tensorboard"]',
            "seed = 0",
            "",
        ]
    )


def in_toml(text: str) -> str:
    """A text as a string of TOML, on one line: JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def listed(names: Iterable[str]) -> str:
    """A list of texts in TOML."""
    return f"[{', '.join(map(in_toml, names))}]"


# --- What a table seems to hold ----------------------------------------------------------------------


def guess_table(table: Table, target: str | None = None) -> Guess:
    """The roles of a table's columns."""
    usable = list(table.columns)
    if len(usable) < 2:
        raise DataError(
            f"{count(len(usable), 'usable column')}, and a table needs inputs and a target",
            where=table.where,
            instead="; ".join(str(error) for error in table.refused.values()) or "add columns",
        )
    if target is None:
        named = [name for name in usable if name.strip().lower() in TARGETS]
        target = named[-1] if named else usable[-1]
    values = table.column(target, "the target")
    empty = missing(values)
    table.require_filled(
        [(target, empty)], "leave these samples out, or choose another target with --target"
    )
    require_several(values, f"column {shown(target)} of {table.where}")
    classes, what = classes_of(table, target)
    inputs = [name for name in usable if name != target]
    ignored = [name for name in inputs if table.is_text(name) and is_identifier(table, name)]
    inputs = [name for name in inputs if name not in ignored]
    more = ", …" if len(inputs) > 5 else ""
    lines = [
        f"targets = {listed([target])}  # {what}",
        f'target = "{"label" if classes else "value"}"',
        f"# inputs = {listed(inputs[:5])}{more}  # by default all others: {count(len(inputs), 'column')}",
    ]
    if ignored or table.refused:
        lines.append(
            f"ignore = {listed([*ignored, *table.refused])}  # identifiers, dates, mixed columns"
        )
        lines += [why(error) for error in table.refused.values()]
    texts = [name for name in inputs if table.is_text(name)]
    if texts:
        lines.append(f"# categories, embedded: {', '.join(map(in_toml, texts))}")
    coded = [name for name in inputs if name not in texts and is_coded(table.columns[name])]
    if coded:
        more = ", …" if len(coded) > 5 else ""
        lines.append(f"# categories = {listed(coded[:5])}{more}  # if these numbers are names")
    gaps = {name: int(missing(table.columns[name]).sum()) for name in inputs}
    gaps = {name: number for name, number in gaps.items() if number}
    if gaps:
        cells = f"{count(sum(gaps.values()), 'empty cell')} in {count(len(gaps), 'column')}"
        lines.append(f'missing = "impute"  # {cells}: the training mean, or a level of its own')
    lines.append(STANDARDISE)
    return Guess(len(table), classes, lines=lines)


def missing(values: Array) -> Array:
    """Which cells of a column are empty."""
    if values.dtype.kind == "O":
        return np.array([cell is None for cell in values])
    if values.dtype.kind != "f":
        return np.zeros(len(values), bool)
    return np.isnan(values)


def require_several(values: Array, where: str) -> None:
    """Raise :class:`~gncompile.errors.DataError` for targets that are all the same."""
    if all(value == values[0] for value in values[1:]):
        raise DataError(
            f"all targets are {shown(str(values[0]), 40)}, which leaves nothing to learn",
            where=where,
            instead="give samples with others, or, of a table, choose another column with --target",
        )


def classes_of(table: Table, target: str) -> tuple[bool, str]:
    """Whether a column holds classes, and what it holds in words."""
    levels, _ = table.levels(target)
    if table.is_text(target) or are_labels(table.columns[target]):
        names = ", ".join(map(in_toml, levels[:5])) + (", …" if len(levels) > 5 else "")
        return True, f"{count(len(levels), 'class', 'es')}: {names}"
    return False, "a column of numbers"


def are_labels(values: Array) -> bool:
    """Whether numbers look like those of classes: whole, from 0 on, few, and of several samples each."""
    distinct = np.unique(values)
    whole = bool(np.all(distinct == np.round(distinct))) and distinct.min() >= 0
    return whole and len(distinct) <= max(2, min(FEW, len(values) // 10))


def is_coded(values: Array) -> bool:
    """Whether numbers may be names: whole, few, and more than the two that need no embedding."""
    filled = values[~missing(values)]
    return bool(len(filled)) and are_labels(filled) and len(np.unique(filled)) > 2


def is_identifier(table: Table, name: str) -> bool:
    """Whether a column of texts tells samples apart and nothing else."""
    levels, _ = table.levels(name)
    return len(levels) > max(2, MANY * len(table))


def why(error: DataError) -> str:
    """What is odd in a column that is left out, and in which line first, as a comment."""
    found, *more = str(error).removeprefix("cannot read the data file: ").splitlines()
    place = next((line.strip() for line in more if line.strip().startswith("where:")), "")
    return visible(f"#   {found}, {place.removeprefix('where:').strip()}")


# --- What an archive seems to hold -------------------------------------------------------------------


def guess_arrays(path: Path) -> Guess:
    """The arrays x and y of an archive."""
    try:
        found, there = ARCHIVES[path.suffix](path, ("x", "y")), ""
    except Missing as error:
        found, there = {}, f", but {error}"
    x, y = found.get("x"), found.get("y")
    if x is None or not x.size or not x.ndim:
        raise DataError(
            f"no array 'x' with samples{there}",
            where=str(path),
            instead="store numbers as arrays x [N, ...] and y [N] or [N, K]",
        )
    size = f"x: {list(x.shape)}"
    if y is None or not y.size:
        line = f'target = "input"  # an autoencoder: {size}, and there is no y'
        return Guess(len(x), False, autoencoder=True, lines=[line])
    if y.size == len(y):
        require_several(y.reshape(-1), f"array 'y' of {path}")
    numbers = y.dtype.kind in "iu" and are_labels(y)
    labels = y.size == len(y) and (numbers or y.dtype.kind in "bO")  # truths, or texts
    kind = f"{size}, y: {list(y.shape)}"
    images = x.ndim > 2 or x.dtype == np.uint8
    lines = [
        f'target = "{"label" if labels else "value"}"  # {kind}',
        f"{'# ' * images}{STANDARDISE}",
    ]
    return Guess(len(x), labels, lines=lines)
